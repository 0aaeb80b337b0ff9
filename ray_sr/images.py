"""Bytes <-> Photo: the only place that decodes bytes nobody vouched for.

A file is gated on its first bytes, refused on its header alone where it is a bomb, an animation or damaged,
and only then decoded by libvips. The pixels are turned upright, converted to gray or RGB, and otherwise left
alone: the profile, the depth and the transparency that came in go out again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

os.environ.setdefault("VIPS_CONCURRENCY", "1")
os.environ.setdefault("VIPS_BLOCK_UNTRUSTED", "1")

import pyvips

from ray_sr.errors import InputError, ResourceError
from ray_sr.image_headers import Header, PhotoError, scan_header, sniff
from ray_sr.image_metadata import (
    MAX_JPEG_EXIF,
    MAX_JPEG_XMP,
    BrokenExif,
    Extras,
    credits_only,
    icc_fits,
    read_orientation,
    resize_exif,
    settle_exif,
    settle_xmp,
)
from ray_sr.image_savers import Style, error_line, save

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "SUFFIXES",
    "Header",
    "Limits",
    "Photo",
    "PhotoError",
    "check_header",
    "check_result_size",
    "decode",
    "encode",
    "format_of",
    "left_out",
    "read_photo",
    "rgb8",
    "scan_header",
    "sniff",
    "write_bytes",
    "write_photo",
]

pyvips.block_untrusted_set(True)
pyvips.cache_set_max(0)
pyvips.concurrency_set(1)
# It tells of every thread pool and of every oddity in a file; what matters arrives as an exception.
logging.getLogger("pyvips").setLevel(logging.ERROR)

Metadata = Literal["keep", "copyright", "none"]

FORMATS = ("png", "jpeg", "webp", "tiff")
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}

_MAX_SIDES = {"jpeg": 65500, "webp": 16383}
_MAX_SIDE = 10_000_000  # of libvips
_STRIP_BYTES = 32 << 20  # decoded at once


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


# Reading --------------------------------------------------------------------------------------------------


def read_photo(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Photo:
    """Photo of a file. Raises InputError (PhotoError for its contents), one line that names the path."""
    shown = _shown(path)
    data = _read_bytes(path, shown, limits.max_bytes)
    try:
        return decode(data, limits)
    except PhotoError as error:
        raise PhotoError(f"{shown}: {error}", error.reason) from None


def _read_bytes(path: str | os.PathLike[str], shown: str, max_bytes: int) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
            return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{shown}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{shown}: is {kind}; give a picture file")
    raise PhotoError(f"{shown}: {status.st_size} bytes are over the limit of {max_bytes}", "payload-too-large")


def _shown(path: str | os.PathLike[str]) -> str:
    return _printable(os.fsdecode(path))


def _printable(text: str) -> str:
    """The text as one line that every terminal and log takes."""
    return text if text.isprintable() else ascii(text)


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Photo:
    """Photo of an encoded picture. Raises PhotoError: a one-line message and a word for machines."""
    if not data:
        raise PhotoError("the file is empty")
    if len(data) > limits.max_bytes:
        raise PhotoError(f"{len(data)} bytes are over the limit of {limits.max_bytes}", "payload-too-large")
    kind = sniff(data)
    if kind not in limits.formats or kind not in FORMATS:
        what = f"{kind.upper()} is not accepted" if kind else "not a picture format that is known here"
        raise PhotoError(f"{what}; accepted are {', '.join(limits.formats)}", "unsupported-media-type")
    header = scan_header(data)
    check_header(header, limits)
    return _decode_checked(data, header, limits)


def check_header(header: Header, limits: Limits) -> None:
    """Raises PhotoError where the header alone is reason to refuse the picture."""
    size = f"{header.width}x{header.height}"
    if header.frames > 1:
        what = "pages" if header.format == "tiff" else "frames"
        raise PhotoError(f"has {header.frames} {what}; only single pictures are accepted", "animated-image")
    if max(header.width, header.height) > limits.max_side:
        raise PhotoError(f"a side of {size} is over the limit of {limits.max_side}", "image-too-large")
    if header.width * header.height > limits.max_pixels:
        raise PhotoError(f"{size} is over the limit of {limits.max_pixels} pixels", "image-too-large")
    if header.scans > limits.max_scans:
        raise PhotoError(f"the JPEG has {header.scans} scans, more than {limits.max_scans}", "unsupported-image")
    if limits.strict and not header.complete:
        raise PhotoError("the file is cut short: its end is missing")
    if limits.strict and header.problems:
        raise PhotoError(f"the file is damaged: {', '.join(header.problems)}")


def _decode_checked(data: bytes, header: Header, limits: Limits) -> Photo:
    load = getattr(pyvips.Image, f"{header.format}load_source")
    fail_on = "warning" if limits.strict and header.format != "tiff" else "error"
    try:
        pages = {"page": header.page} if header.format == "tiff" else {}
        source = pyvips.Source.new_from_memory(data)  # a buffer would be copied
        image = load(source, fail_on=fail_on, access="sequential", **pages)
        if (image.width, image.height) != (header.width, header.height):
            raise PhotoError(f"the {header.format} has another size than its header says")
        image, converted = _to_gray_or_rgb(image, header)
        pixels, alpha = _planes(image)
    except pyvips.Error as error:
        raise PhotoError(f"the {header.format} cannot be decoded ({error_line(error)})") from None
    colors = pixels.shape[2]
    exif, orientation, exif_broken = _settled_exif(image, header)
    icc, icc_dropped = (None, ()) if converted else _usable_icc(image, header, colors)
    iptc_dropped = ("iptc-dropped",) if image.get_typeof("iptc-data") else ()
    xmp = _blob(image, "xmp-data")
    return Photo(
        pixels=np.ascontiguousarray(_turn(pixels, orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(_turn(alpha, orientation)),
        icc=icc,
        exif=exif,
        xmp=settle_xmp(xmp) if xmp else None,
        density=_turned_density(header.density, orientation),
        warnings=header.warnings + converted + icc_dropped + exif_broken + iptc_dropped,
    )


def _to_gray_or_rgb(image: pyvips.Image, header: Header) -> tuple[pyvips.Image, tuple[str, ...]]:
    """The image as 8- or 16-bit gray or RGB, with or without alpha, and what had to be converted."""
    warnings: tuple[str, ...] = ()
    if image.interpretation == "cmyk":
        options = {"embedded": True, "input_profile": "cmyk", "intent": "relative"}
        image = image.icc_transform("srgb", depth=header.depth, black_point_compensation=True, **options)
        warnings = ("cmyk-converted",)
    elif image.interpretation in ("lab", "labs", "labq"):
        image = image.colourspace("rgb16" if header.depth == 16 else "srgb")
        warnings = ("lab-converted",)
    if image.format not in ("uchar", "ushort") or image.bands > 4:
        what = f"{image.bands} channels of type {image.format}"
        raise PhotoError(f"{what} are not supported; give 8- or 16-bit gray or RGB", "unsupported-image")
    return image, warnings


def _planes(image: pyvips.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour H×W×C and transparency H×W, decoded strip by strip: libvips hands out each as a copy."""
    height, width, colors = image.height, image.width, 1 if image.bands < 3 else 3
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    pixels = np.empty((height, width, colors), dtype)
    alpha = np.empty((height, width), dtype) if image.bands > colors else None
    several = max(1, _STRIP_BYTES // (width * image.bands * pixels.itemsize))
    region = pyvips.Region.new(image)
    for top in range(0, height, several):
        rows = min(several, height - top)
        strip = np.frombuffer(region.fetch(0, top, width, rows), dtype).reshape(rows, width, image.bands)
        pixels[top : top + rows] = strip[..., :colors]
        if alpha is not None:
            alpha[top : top + rows] = strip[..., colors]
    return pixels, alpha


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels upright. Orientations 1..8 as in Exif 3.0, section 4.6.5.1.6; others leave them alone."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _settled_exif(image: pyvips.Image, header: Header) -> tuple[bytes | None, int, tuple[str, ...]]:
    """The EXIF block made fit to be kept, the orientation it asked for, and a warning where it is broken."""
    block = _blob(image, "exif-data")
    if block is None:
        return None, header.orientation, ()
    orientation = read_orientation(block)
    try:
        return settle_exif(block), orientation, ()
    except BrokenExif:
        return None, orientation, ("exif-broken",)


def _usable_icc(image: pyvips.Image, header: Header, colors: int) -> tuple[bytes | None, tuple[str, ...]]:
    profile = header.icc if header.format == "png" else _blob(image, "icc-profile-data")
    return (profile, ()) if profile is None or icc_fits(profile, colors) else (None, ("icc-dropped",))


def _blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) or None if image.get_typeof(name) else None


def _turned_density(density: tuple[float, float] | None, orientation: int) -> tuple[float, float] | None:
    """Dots per inch of the upright picture; None for values that no device has."""
    if density is None or min(density) < 0.1 or max(density) > 1e5:
        return None
    return density[::-1] if orientation in (5, 6, 7, 8) else density


# Writing --------------------------------------------------------------------------------------------------


def write_photo(
    path: str | os.PathLike[str],
    photo: Photo,
    *,
    format: str | None = None,
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    background: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Encodes into `path`, whose suffix gives the format unless `format` does; see `encode`.

    Raises InputError for an unknown suffix and ResourceError, one line, where the file cannot be written.
    """
    chosen = format or format_of(path)
    write_bytes(
        path,
        encode(photo, chosen, quality=quality, lossless=lossless, metadata=metadata, background=background),
    )


def format_of(path: str | os.PathLike[str]) -> str:
    """Format that the suffix of a file name stands for. Raises InputError for any other suffix."""
    suffix = os.path.splitext(os.fsdecode(path))[1].lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{_shown(path)}: the name must end in one of {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes aside, then renames: a reader sees the old file or the whole new one. Raises ResourceError."""
    target = Path(os.fsdecode(path))
    try:
        if target.exists() and not target.is_file():
            raise ResourceError(f"{_shown(path)}: exists and is not a file; give another name")
        _replace(target, data)
    except OSError as error:
        raise ResourceError(f"{_shown(path)}: cannot be written ({error.strerror or error})") from None


def _replace(target: Path, data: bytes) -> None:
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def check_result_size(format: str, width: int, height: int) -> None:
    """Raises PhotoError (format-limit) where the format cannot hold so many pixels a side."""
    limit = _MAX_SIDES.get(format, _MAX_SIDE)
    if max(width, height) > limit:
        advice = "use png" if format in _MAX_SIDES else "give a smaller scale"
        raise PhotoError(f"{width}x{height} is over the {limit} a side of {format}; {advice}", "format-limit")


def left_out(photo: Photo, format: str) -> tuple[str, ...]:
    """What `encode` leaves out or changes in this format, as words like those of `Photo.warnings`."""
    jpeg, webp, tiff = (format == name for name in ("jpeg", "webp", "tiff"))
    exif_bytes, xmp_bytes = len(photo.exif or b""), len(photo.xmp or b"")
    reasons = {
        "depth-reduced": photo.depth == 16 and (jpeg or webp),
        "alpha-flattened": photo.alpha is not None and jpeg,
        "icc-dropped": photo.icc is not None and not icc_fits(photo.icc, 3 if webp else photo.channels),
        "exif-dropped": exif_bytes > 0 and (tiff or (jpeg and exif_bytes > MAX_JPEG_EXIF)),
        "xmp-dropped": jpeg and xmp_bytes > MAX_JPEG_XMP,
    }
    return tuple(word for word, applies in reasons.items() if applies)


def encode(
    photo: Photo,
    format: str = "png",
    *,
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    background: tuple[int, int, int] = (255, 255, 255),
) -> bytes:
    """The photo as png, jpeg (4:4:4), webp or tiff (deflate); the same photo gives the same bytes.

    quality (1..100) is for jpeg and webp, lossless for webp. A profile that fits the pixels is kept. metadata:
    all of it, only artist and copyright, or none. JPEG puts transparent pixels on `background` (8-bit RGB).
    `left_out` tells what does not fit into the format. Raises PhotoError (format-limit) and ResourceError.
    """
    if format not in FORMATS:
        raise InputError(f"unknown picture format {format!r}; use one of {', '.join(FORMATS)}")
    check_result_size(format, photo.width, photo.height)
    photo = fit_to_format(photo, left_out(photo, format), background)
    extras = extras_of(photo, metadata, (photo.height, photo.width))
    try:
        return save(_to_vips(photo), Style(format, extras, photo.icc, quality, lossless))
    except pyvips.Error as error:
        raise ResourceError(f"the picture cannot be encoded as {format} ({error_line(error)})") from None


def fit_to_format(photo: Photo, lost: tuple[str, ...], background: tuple[int, int, int]) -> Photo:
    """The photo without what `left_out` names as lost. Works on any part of a photo."""
    if "depth-reduced" in lost:
        alpha = None if photo.alpha is None else _to_8_bits(photo.alpha)
        photo = replace(photo, pixels=_to_8_bits(photo.pixels), alpha=alpha)
    if "alpha-flattened" in lost:
        photo = _flatten(photo, background)
    return replace(
        photo,
        icc=None if "icc-dropped" in lost else photo.icc,
        exif=None if "exif-dropped" in lost else photo.exif,
        xmp=None if "xmp-dropped" in lost else photo.xmp,
    )


def _flatten(photo: Photo, background: tuple[int, int, int]) -> Photo:
    """The photo over a plain background (8-bit photos); gray photos take the luma of the background."""
    color = np.array(background, np.float32)
    if photo.channels == 1:
        color = color @ np.array([[0.299], [0.587], [0.114]], np.float32)
    assert photo.alpha is not None
    opacity = photo.alpha[..., None].astype(np.float32) / 255
    mixed = photo.pixels * opacity + color * (1 - opacity)
    return replace(photo, pixels=np.rint(mixed).astype(np.uint8), alpha=None)


def extras_of(photo: Photo, metadata: Metadata, size: tuple[int, int]) -> Extras:
    """What goes into a picture of this height and width beside its pixels."""
    exif = photo.exif
    if exif and metadata == "copyright":
        exif = credits_only(exif)
    elif exif:
        exif = resize_exif(exif, *size[::-1])
    kept = metadata == "keep"
    return Extras(None if metadata == "none" else exif, photo.xmp if kept else None, photo.density)


def _to_vips(photo: Photo) -> pyvips.Image:
    samples = photo.pixels
    if photo.alpha is not None:
        samples = np.concatenate([samples, photo.alpha[..., None]], axis=2)
    samples = np.ascontiguousarray(samples)
    kinds = {(8, 1): "b-w", (8, 3): "srgb", (16, 1): "grey16", (16, 3): "rgb16"}
    storage = "uchar" if photo.depth == 8 else "ushort"
    image = pyvips.Image.new_from_memory(samples, photo.width, photo.height, samples.shape[2], storage)
    return image.copy(interpretation=kinds[photo.depth, photo.channels])
