"""Pixels out of checked bytes: libvips, and for HEIC and JPEG XL the libraries of the extra `formats`.

Nothing here looks at what the pixels mean, and everything has been held against the header before.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips

from ray_sr.images.header import Header, PhotoError
from ray_sr.images.savers import error_line, needs_extra

_STRIP_BYTES = 32 << 20  # decoded at once
_ALPHA_SAMPLES = ((1,), (2,))  # of TIFF's ExtraSamples: associated, unassociated


@dataclass(frozen=True, eq=False)
class Loaded:
    """Colour H×W×C and opacity H×W as stored, the metadata that the decoder found, and what it had to change."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    warnings: tuple[str, ...] = ()


def load_pixels(data: bytes, header: Header, fail_on: str) -> Loaded:
    """Decodes the picture. fail_on: what libvips takes for an error. Raises PhotoError."""
    try:
        if header.format == "heif":
            return _from_heic(data, header)
        if header.format == "jxl":
            return _from_jxl(data, header, fail_on)
        return _by_libvips(data, header, fail_on)
    except pyvips.Error as error:
        raise PhotoError(f"the {header.format} cannot be decoded ({error_line(error)})") from None


def _by_libvips(data: bytes, header: Header, fail_on: str) -> Loaded:
    name = "heif" if header.format == "avif" else header.format
    load = getattr(pyvips.Image, f"{name}load_source")
    pages = {"page": header.page} if header.format == "tiff" else {}
    source = pyvips.Source.new_from_memory(data)  # a buffer would be copied
    image = load(source, fail_on=fail_on, access="sequential", **pages)
    _check_size(header, image.width, image.height)
    image, warnings = _to_gray_or_rgb(image, header)
    pixels, alpha = _planes(image)
    if header.format == "avif":
        pixels, alpha = _fitted(pixels, alpha, header)
    if alpha is not None and _is_something_else(header):
        alpha, warnings = None, (*warnings, "extra-channel-dropped")
    blobs = {name: _blob(image, f"{name}-data") for name in ("exif", "xmp", "iptc")}
    icc = None if "cmyk-converted" in warnings or "lab-converted" in warnings else _blob(image, "icc-profile-data")
    return Loaded(pixels, alpha, icc, warnings=warnings, **blobs)


def _check_size(header: Header, width: int, height: int) -> None:
    if (width, height) != (header.width, header.height):
        raise PhotoError(f"the {header.format} has another size than its header says")


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


def _is_something_else(header: Header) -> bool:
    """Whether a TIFF's first sample beyond the colours is not said to be opacity."""
    return header.format == "tiff" and header.extra is not None and header.extra[:1] not in _ALPHA_SAMPLES


def _blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) or None if image.get_typeof(name) else None


def _fitted(pixels: np.ndarray, alpha: np.ndarray | None, header: Header) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of HEIF over their full range, gray as one channel, and colours not times opacity."""
    if header.channels < 3:
        pixels = pixels[..., :1]
    if pixels.dtype == np.uint16:
        pixels = _widened(pixels, header.depth)
        alpha = None if alpha is None else _widened(alpha, header.depth)
    if header.premultiplied and alpha is not None:
        pixels = _divided(pixels, alpha)
    return np.ascontiguousarray(pixels), alpha


def _widened(samples: np.ndarray, depth: int) -> np.ndarray:
    """uint16 whose upper bits are a sample of this depth, as uint16 of full range: the largest becomes 65535."""
    top = (1 << depth) - 1
    values = (samples >> (16 - depth)).astype(np.uint32)
    return ((values * 65535 + top // 2) // top).astype(np.uint16)


def _divided(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours that were stored times opacity; 0 where nothing is seen."""
    top = int(np.iinfo(pixels.dtype).max)
    weight = alpha[..., None].astype(np.uint32)
    divided = (pixels.astype(np.uint32) * top + weight // 2) // np.maximum(weight, 1)
    return np.where(weight > 0, np.minimum(divided, top), 0).astype(pixels.dtype)


# The extra `formats` --------------------------------------------------------------------------------------


def _from_heic(data: bytes, header: Header) -> Loaded:
    try:
        import pillow_heif
    except ImportError:
        raise needs_extra("heif") from None
    try:
        opened = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        picture = opened[opened.primary_index]
        _check_size(header, *picture.size)
        samples = np.asarray(picture)
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PhotoError(f"the HEIC cannot be decoded ({line if line.isprintable() else ascii(line)})") from None
    samples = samples[..., None] if samples.ndim == 2 else samples
    pixels, alpha = _split(samples)
    return Loaded(*_fitted(pixels, alpha, header))


def _from_jxl(data: bytes, header: Header, fail_on: str) -> Loaded:
    try:
        from pillow_jxl import Decoder
    except ImportError:
        raise needs_extra("jxl") from None
    try:
        is_jpeg, info, raw, icc, boxes = Decoder(num_threads=0)(data)
    except (ValueError, RuntimeError, OSError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PhotoError(f"the JPEG XL cannot be decoded ({line if line.isprintable() else ascii(line)})") from None
    if is_jpeg:
        return _from_jpeg_inside(bytes(raw), header, fail_on)
    _check_size(header, info.width, info.height)
    dtype: Any = {"L": np.uint8, "RGB": np.uint8, "RGBA": np.uint8, "LA": np.uint8, "I;16": np.uint16}.get(
        info.mode
    )
    if dtype is None:
        raise PhotoError(f"JPEG XL with pixels of the kind {info.mode} is not supported", "unsupported-image")
    samples = np.frombuffer(raw, dtype).reshape(info.height, info.width, -1)
    pixels, alpha = _split(samples)
    if header.premultiplied and alpha is not None:
        pixels = _divided(pixels, alpha)
    found = {bytes(box.box_type): bytes(box.data) for box in reversed(boxes)}
    exif = found.get(b"Exif")
    # The library takes away the four bytes before the block, but not from every file.
    if exif is not None and exif[:4] not in (b"II*\0", b"MM\0*"):
        exif = exif[4:]
    reduced = ("depth-reduced",) if header.depth > 8 and dtype == np.uint8 else ()
    is_srgb = header.icc == b""
    return Loaded(pixels, alpha, None if is_srgb else icc, exif, found.get(b"xml "), warnings=reduced)


def _from_jpeg_inside(jpeg: bytes, header: Header, fail_on: str) -> Loaded:
    """Pixels of a JPEG that was packed into a JPEG XL, which gives it back byte for byte."""
    from ray_sr.images.headers import scan_header

    inside = scan_header(jpeg)
    _check_size(header, inside.width, inside.height)
    return _by_libvips(jpeg, inside, fail_on)


def _split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    colours = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., colours] if samples.shape[2] > colours else None
    return np.ascontiguousarray(samples[..., :colours]), None if alpha is None else np.ascontiguousarray(alpha)
