"""A photo in memory and what is accepted as one: formats, suffixes and limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

Metadata = Literal["keep", "copyright", "none"]

FORMATS = ("png", "jpeg", "webp", "tiff", "avif", "jxl")  # that are written
READ_FORMATS = (*FORMATS, "heif")
_LIBRARIES = {"heif": "pillow_heif", "jxl": "pillow_jxl"}  # of the extra `formats`
WRITTEN_SUFFIXES = {
    ".png": "png",
    ".apng": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
    ".jxl": "jxl",
}
SUFFIXES = {**WRITTEN_SUFFIXES, ".mpo": "jpeg", ".heic": "heif", ".heif": "heif"}  # of what is read
# Pictures that are neither read nor written here: named where they are met, never taken for folders.
_OTHERS = (
    "gif bmp dib jp2 j2k jpx psd psb svg svgz pdf ico cur icns tga dds exr hdr pnm pbm pgm ppm pam pcx xcf kra "
    "eps ai qoi hif avifs heics jxr wdp raw dng cr2 cr3 nef arw orf rw2 raf pef srw 3fr"
)
OTHER_SUFFIXES = tuple(f".{name}" for name in _OTHERS.split())


def at_hand(formats: Iterable[str]) -> tuple[str, ...]:
    """Those of the formats whose library is installed."""
    return tuple(name for name in formats if name not in _LIBRARIES or find_spec(_LIBRARIES[name]))


@dataclass(frozen=True)
class Limits:
    """What `decode` accepts; everything but `max_bytes` is checked on the header, before any pixel.

    max_pixels counts width x height. With strict, every complaint of the decoder, a wrong checksum of what is
    seen and a missing end mark are errors; without, JPEG and PNG are read as far as they go. TIFF decoders
    complain about any private tag, so there only errors count.
    """

    max_bytes: int = 1 << 30
    max_pixels: int = 1 << 28
    max_side: int = 1 << 17
    formats: tuple[str, ...] = READ_FORMATS
    max_scans: int = 64
    strict: bool = True


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Photo:
    """One upright picture.

    pixels: uint8 or uint16, H×W×C, C = 1 (gray) or 3 (RGB), values as encoded by the profile `icc` (sRGB
    where None). alpha: H×W of the same type, not premultiplied, or None. exif: TIFF-headed block whose
    orientation is 1, without thumbnail. iptc: IIM records. png_colour and png_text: chunks of a PNG, kept byte
    for byte from PNG to PNG; the colours are those of `icc` in other words. density: dots per inch (across,
    down). warnings: what decoding changed or lost, as words, which docs/pictures.md lists.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    png_colour: bytes | None = None
    png_text: bytes | None = None
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
    pixels = to_8_bits(photo.pixels)
    return np.repeat(pixels, 3, axis=2) if photo.channels == 1 else pixels


def rgb16(photo: Photo) -> np.ndarray:
    """uint16 H×W×3, as `rgb8`: 8 bits times 257, so that white is white."""
    pixels = to_16_bits(photo.pixels)
    return np.repeat(pixels, 3, axis=2) if photo.channels == 1 else pixels


def to_16_bits(values: np.ndarray) -> np.ndarray:
    """uint16 of uint8 or uint16; `to_8_bits` gives uint8 back exactly."""
    return values if values.dtype == np.uint16 else values.astype(np.uint16) * np.uint16(257)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of uint16 or uint8: v · 255 / 65535, rounded to nearest."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
