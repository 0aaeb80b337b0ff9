"""A photo in memory and what is accepted as one: formats, suffixes and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Metadata = Literal["keep", "copyright", "none"]

FORMATS = ("png", "jpeg", "webp", "tiff")
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}


@dataclass(frozen=True)
class Limits:
    """What `decode` accepts; everything but `max_bytes` is checked on the header, before any pixel.

    max_pixels counts width x height. With strict, every complaint of the decoder, a wrong checksum and a
    missing end mark are errors; without, only what stops the decoder is. TIFF decoders complain about any
    private tag, so there only errors count.
    """

    max_bytes: int = 1 << 30
    max_pixels: int = 1 << 28
    max_side: int = 1 << 17
    formats: tuple[str, ...] = FORMATS
    max_scans: int = 64
    strict: bool = True


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Photo:
    """One upright picture.

    pixels: uint8 or uint16, H×W×C, C = 1 (gray) or 3 (RGB), values as encoded by the profile `icc` (sRGB
    where None). alpha: H×W of the same type, not premultiplied, or None. exif: TIFF-headed block whose
    orientation is 1, without thumbnail. density: dots per inch (across, down). warnings: what decoding
    changed or lost, as words: cmyk-converted, lab-converted, icc-dropped, exif-broken, exif-dropped,
    iptc-dropped, gamma-dropped, gainmap-dropped.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    density: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, not {self.pixels.dtype}")
        if self.pixels.ndim != 3 or self.pixels.shape[2] not in (1, 3) or not self.pixels.size:
            raise ValueError(f"pixels must be H×W×1 or H×W×3, not {self.pixels.shape}")
        if self.alpha is None:
            return
        if self.alpha.dtype != self.pixels.dtype or self.alpha.shape != self.pixels.shape[:2]:
            raise ValueError("alpha must be H×W of the type of pixels")

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def channels(self) -> int:
        return self.pixels.shape[2]

    @property
    def depth(self) -> int:
        """Bits per sample, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize


def rgb8(photo: Photo) -> np.ndarray:
    """uint8 H×W×3 for training and metrics: gray repeated, 16 bits rounded, alpha and profile ignored."""
    pixels = _to_8_bits(photo.pixels)
    return np.repeat(pixels, 3, axis=2) if photo.channels == 1 else pixels


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """v · 255 / 65535, rounded to nearest."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
