"""libvips' savers, each with the project's options: into bytes, or into a file without holding the whole.

Profiles and metadata are put in byte for byte: into PNG and JPEG behind the header that libvips wrote, since
it would compress the one anew and add tags of its own to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyvips

from ray_sr.images.containers import Extras, add_to_avif, add_to_jpeg, add_to_png, add_to_webp
from ray_sr.images.header import PhotoError

BIGTIFF_BYTES = 3 << 30  # of pixels before compression

_INCH_MM = 25.4
_HELD_WHOLE = ("webp", "avif", "jxl")
_AVIF_DEPTH = 12  # of 16 bits
_EFFORT = {"avif": 0, "jxl": 4}  # beyond these files hardly shrink, and time grows tenfold
_HEAD_BYTES = 1024  # of an encoded picture: its header and the beginning of its pixels are among them
_PNG = {"compression": 1, "filter": "sub", "keep": "none"}
_JPEG = {"subsample_mode": "off", "keep": "icc"}
_TIFF = {
    "keep": pyvips.enums.ForeignKeep.ICC | pyvips.enums.ForeignKeep.XMP | pyvips.enums.ForeignKeep.IPTC,
    "compression": "deflate",
    "level": 1,
    "predictor": "horizontal",
    "resunit": "inch",
}


def needs_extra(format: str) -> PhotoError:
    """The error where a library of the extra `formats` is missing."""
    what = {"heif": "HEIC", "jxl": "JPEG XL"}[format]
    return PhotoError(f"{what} needs the extra: pip install 'ray-sr[formats]'", "unsupported-media-type")


@dataclass(frozen=True)
class Style:
    """How a picture is saved: in one of `photo.FORMATS`, with what beside its pixels."""

    format: str
    extras: Extras
    icc: bytes | None
    quality: int = 95
    lossless: bool = False


def save(image: pyvips.Image, style: Style) -> bytes:
    """The encoded picture; the same pixels give the same bytes. Raises pyvips.Error."""
    image = _with_metadata(image, style)
    if style.format == "png":
        return _with_head(image.pngsave_buffer(bitdepth=_depth(image), **_PNG), style)
    if style.format == "jpeg":
        return _with_head(image.jpegsave_buffer(Q=style.quality, **_JPEG), style)
    if style.format == "tiff":
        return bytes(image.tiffsave_buffer(bigtiff=_is_big(image), **_TIFF))
    if style.format == "avif":
        return add_to_avif(_avif(image, style), style.extras)
    if style.format == "jxl":
        return _jxl(image, style)
    data = image.webpsave_buffer(exact=True, keep="icc", **_webp(style))
    return add_to_webp(data, style.extras, image.width, image.height, bool(image.hasalpha()))


def save_file(image: pyvips.Image, path: Path, style: Style) -> None:
    """What `save` returns, into this file. The image may be sequential; webp, avif and jxl hold it whole.

    Raises pyvips.Error, and OSError where the file cannot be written.
    """
    if style.format == "tiff":
        with open(path, "wb"):
            pass
        _with_metadata(image, style).tiffsave(str(path), bigtiff=_is_big(image), **_TIFF)
        return
    with open(path, "wb") as file:
        if style.format in _HELD_WHOLE:
            file.write(save(image, style))
            return
        sink = _Sink(file, style)
        target = pyvips.TargetCustom()
        target.on_write(sink.write)
        try:
            if style.format == "png":
                image.pngsave_target(target, bitdepth=_depth(image), **_PNG)
            else:
                _with_metadata(image, style).jpegsave_target(target, Q=style.quality, **_JPEG)
            sink.finish()
        except pyvips.Error:
            raise sink.failure or pyvips.Error("the picture cannot be encoded") from None


class _Sink:
    """Takes an encoded picture in pieces and adds to its head. libvips hears of a failure by a count of -1."""

    def __init__(self, file: BinaryIO, style: Style) -> None:
        self._file, self._style = file, style
        self._head: bytes | None = b""
        self.failure: OSError | None = None

    def write(self, piece: bytes) -> int:
        try:
            if self._head is None:
                self._file.write(piece)
            else:
                self._head += bytes(piece)
                if len(self._head) >= _HEAD_BYTES:
                    self.finish()
        except OSError as error:
            self.failure = error
            return -1
        return len(piece)

    def finish(self) -> None:
        if self._head is not None:
            self._file.write(_with_head(self._head, self._style))
            self._head = None


def _with_head(data: bytes, style: Style) -> bytes:
    if style.format == "png":
        return add_to_png(data, style.extras, style.icc)
    return add_to_jpeg(data, style.extras)


def _with_metadata(image: pyvips.Image, style: Style) -> pyvips.Image:
    """The image with what libvips itself is to write: the profile, and for TIFF density and XMP."""
    image = image.copy()
    if style.icc and style.format != "png":
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", style.icc)
    if style.format == "tiff":
        across, down = style.extras.density or (72.0, 72.0)
        image = image.copy(xres=across / _INCH_MM, yres=down / _INCH_MM)
        if style.extras.xmp:
            image.set_type(pyvips.GValue.blob_type, "xmp-data", style.extras.xmp)
        if style.extras.iptc:
            # libvips counts in fours what libtiff counts in bytes.
            padded = style.extras.iptc.ljust(4 * len(style.extras.iptc), b"\0")
            image.set_type(pyvips.GValue.blob_type, "iptc-data", padded)
    return image


def _avif(image: pyvips.Image, style: Style) -> bytes:
    """AVIF in 4:4:4; 16 bits are rounded to 12."""
    depth = _depth(image)
    if depth == 16:
        top, most, unit = (1 << _AVIF_DEPTH) - 1, 65535, 1 << (16 - _AVIF_DEPTH)
        image = ((image * (top / most)).rint() * unit).cast("ushort").copy(interpretation=image.interpretation)
    options = {"lossless": True} if style.lossless else {"Q": style.quality, "subsample_mode": "off"}
    depth = 8 if depth == 8 else _AVIF_DEPTH
    return bytes(
        image.heifsave_buffer(compression="av1", bitdepth=depth, keep="icc", effort=_EFFORT["avif"], **options)
    )


def _jxl(image: pyvips.Image, style: Style) -> bytes:
    """JPEG XL by the library of the extra `formats`, 8 bits a sample, in sRGB."""
    try:
        from pillow_jxl import Encoder
    except ImportError:
        raise needs_extra("jxl") from None
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[image.bands]
    encoder = Encoder(  # type: ignore[call-arg]
        mode=mode,
        lossless=style.lossless,
        quality=100.0 if style.lossless else float(style.quality),
        effort=_EFFORT["jxl"],
        use_container=True,
        use_original_profile=style.lossless,
        num_threads=0,
    )
    metadata = {"exif": style.extras.exif, "xmp": style.extras.xmp, "jumb": None, "compress": False}
    samples = bytes(image.write_to_memory())
    return bytes(encoder(samples, image.width, image.height, jpeg_encode=False, **metadata))


def _webp(style: Style) -> dict[str, Any]:
    if style.lossless:
        return {"Q": 25, "lossless": True, "effort": 0}
    return {"Q": style.quality, "effort": 2}


def _depth(image: pyvips.Image) -> int:
    return 8 if image.format == "uchar" else 16


def _is_big(image: pyvips.Image) -> bool:
    colours = image.bands - int(image.hasalpha())
    return bool(image.width * image.height * colours * _depth(image) // 8 >= BIGTIFF_BYTES)


def error_line(error: pyvips.Error) -> str:
    """The last thing libvips said: its buffer may begin with what an earlier picture left there."""
    text = f"{error.message} {error.detail}".strip().splitlines()[-1].strip()[:200]
    return text if text.isprintable() else ascii(text)
