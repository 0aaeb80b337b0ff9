"""What every reader of headers gives, and the error with which pictures are refused."""

from __future__ import annotations

from dataclasses import dataclass

from ray_sr.errors import InputError

MAX_METADATA_BLOCKS = 4096
MAX_ICC_BYTES = 4 << 20
MAX_TEXT_BYTES = 4 << 20  # of all texts of a picture together, unpacked


class PhotoError(InputError):
    """A picture that is damaged, too large, or of a kind that is not accepted.

    `reason` is one of image-corrupt, image-too-large, payload-too-large, animated-image,
    unsupported-image, unsupported-media-type, format-limit.
    """

    def __init__(self, message: str, reason: str = "image-corrupt") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What the container promises; nothing in it has been checked against the pixels.

    width and height are as stored, before any turn, but for AVIF, HEIC and JPEG XL, whose decoders turn, those
    of the upright picture. `depth` is bits per sample, `channels` counts stored samples (palettes: 1; 0 where
    only the pixels tell), `density` is dots per inch across and down. `complete` is False where the end of the
    file is missing. `problems` names faults that may touch pixels, `warnings` what is lost by decoding.
    `orientation`, `page`, the first that is not a thumbnail or a mask, and `extra`, the meaning of the samples
    beyond the colours (ExtraSamples), are filled for TIFF only. `turned`: the decoder turns the picture.
    `premultiplied`: colours are stored times opacity. `junk`: spans of bytes, (start, end), that belong to no
    part of the file and that a decoder would stumble over. `end`: where the end mark of a JPEG ends.

    Metadata is filled where this reader and not the decoder finds it: `icc` for PNG, AVIF and HEIC (b"" where
    it cannot be unpacked), `exif` and `xmp` for these too, `iptc` (records of IIM) for PNG, `png_colour` and
    `png_text` as whole chunks for PNG; `png_text` for the comments of JPEG as well.
    """

    format: str
    width: int
    height: int
    depth: int = 8
    channels: int = 0
    frames: int = 1
    scans: int = 1
    complete: bool = True
    density: tuple[float, float] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    orientation: int = 1
    turned: bool = False
    page: int = 0
    extra: tuple[int, ...] | None = None
    premultiplied: bool = False
    junk: tuple[tuple[int, int], ...] = ()
    end: int = 0
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    png_colour: bytes | None = None
    png_text: bytes | None = None
