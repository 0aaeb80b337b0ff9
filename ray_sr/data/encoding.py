"""Lossless bytes of sub-images inside shards.

WebP is the default: of photographs cut to 480 px it takes half the bytes of PNG or zstd (194 against 362
and 338 KiB in a trial) and decodes as fast (3.2 against 2.9 and 2.4 ms).
These pixels were made by this project, so Pillow's fast decoders are used, not the guarded ones of `images`.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_sr.data.manifest import Encoding

_ZSTD = pa.Codec("zstd", compression_level=1)


def encode_pixels(pixels: np.ndarray, encoding: Encoding) -> bytes:
    """Encode uint8 H×W×3 without loss."""
    if encoding == "raw":
        return bytes(_ZSTD.compress(np.ascontiguousarray(pixels).tobytes(), asbytes=True))
    buffer = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode_pixels(data: bytes, encoding: Encoding, height: int, width: int) -> np.ndarray:
    """Decode to uint8 height×width×3; ValueError where the bytes hold something else."""
    if encoding == "raw":
        raw = _ZSTD.decompress(data, decompressed_size=height * width * 3)
        return np.frombuffer(raw, np.uint8).reshape(height, width, 3)
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError as error:
        raise ValueError(f"damaged {encoding} data: {error}") from None
    if pixels.shape != (height, width, 3):
        raise ValueError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels where {width}x{height} are noted")
    return pixels
