"""JPEG and WebP artefacts: the pixels are encoded and decoded in memory by the codecs themselves."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ray_sr.degradations.pixels import to_uint8, to_unit
from ray_sr.errors import InputError
from ray_sr.recipes.degradations import CompressionSpec

_LONGEST_SIDE = {"jpeg": 65535, "webp": 16383}


def compress(image: torch.Tensor, spec: CompressionSpec, rng: np.random.Generator) -> torch.Tensor:
    """Compresses float32 3×H×W with a quality drawn by `spec`, or leaves it as it is.

    Raises InputError for a photo with a side longer than the format allows.
    """
    if rng.random() >= spec.probability:
        return image
    quality = int(rng.integers(spec.quality[0], spec.quality[1] + 1))
    pixels = to_uint8(image[None])[0]
    recode = jpeg if spec.kind == "jpeg" else webp
    return to_unit(recode(pixels, quality)[None])[0]


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 H×W×3 through JPEG of this quality, chroma 4:2:0, as cameras and web sites store photos."""
    _check_sides(pixels, "jpeg")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return _decoded(JpegImageFile, buffer)


def webp(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 H×W×3 through lossy WebP of this quality."""
    _check_sides(pixels, "webp")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return _decoded(WebPImageFile, buffer)


def _check_sides(pixels: np.ndarray, codec: str) -> None:
    longest = max(pixels.shape[:2])
    if longest > _LONGEST_SIDE[codec]:
        raise InputError(
            f"{codec} holds at most {_LONGEST_SIDE[codec]} px a side, the photo has {longest}: cut it smaller"
        )


def _decoded(reader: type[ImageFile], buffer: BytesIO) -> np.ndarray:
    """Pixels of what was just encoded; not by `Image.open`, whose guards are for bytes of strangers."""
    buffer.seek(0)
    return np.asarray(reader(buffer))
