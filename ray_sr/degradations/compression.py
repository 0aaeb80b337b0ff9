"""JPEG and WebP artefacts: the pixels are encoded and decoded in memory by the codecs themselves."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from ray_sr.degradations.pixels import Pixels, to_uint8, to_unit
from ray_sr.errors import InputError
from ray_sr.recipes.degradations import CompressionSpec

_LONGEST_SIDE = {"jpeg": 65500, "webp": 16383}


def compress(image: Pixels, spec: CompressionSpec, rng: np.random.Generator) -> Pixels:
    """Compresses float32 H×W×3 with a quality drawn by `spec`, or leaves it as it is.

    Raises InputError for a photo with a side longer than the format allows.
    """
    if rng.random() >= spec.probability:
        return image
    quality = int(rng.integers(spec.quality[0], spec.quality[1] + 1))
    recode = jpeg if spec.kind == "jpeg" else webp
    return to_unit(recode(to_uint8(image), quality))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 H×W×3 through JPEG of this quality, chroma 4:2:0, as cameras and web sites store photos.

    By libjpeg-turbo in OpenCV: the same pixels as by Pillow, in a third of the time on small pictures.
    """
    _check_sides(pixels, "jpeg")
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    ]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return np.asarray(decoded)


def webp(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 H×W×3 through lossy WebP of this quality."""
    _check_sides(pixels, "webp")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    buffer.seek(0)
    return np.asarray(WebPImageFile(buffer))  # not by `Image.open`, whose guards are for bytes of strangers


def _check_sides(pixels: np.ndarray, codec: str) -> None:
    longest = max(pixels.shape[:2])
    if longest > _LONGEST_SIDE[codec]:
        raise InputError(
            f"{codec} holds at most {_LONGEST_SIDE[codec]} px a side, the photo has {longest}: cut it smaller"
        )
