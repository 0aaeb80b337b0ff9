"""Bytes <-> Photo: the only place that decodes bytes nobody vouched for.

A file is gated on its first bytes, refused on its header alone where it is a bomb, an animation or damaged,
and only then decoded by libvips. The pixels are turned upright, converted to gray or RGB, and otherwise left
alone: the profile, the depth and the transparency that came in go out again.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import numpy as np
import pyvips

from ray_sr.errors import InputError, printable
from ray_sr.images.headers import Header, PhotoError, scan_header, sniff
from ray_sr.images.metadata import (
    BrokenExif,
    icc_fits,
    normalise_exif,
    normalise_xmp,
    read_orientation,
)
from ray_sr.images.photo import DEFAULT_LIMITS, FORMATS, Limits, Photo
from ray_sr.images.savers import error_line

pyvips.block_untrusted_set(True)
pyvips.cache_set_max(0)
pyvips.concurrency_set(1)
# It tells of every thread pool and of every oddity in a file; what matters arrives as an exception.
logging.getLogger("pyvips").setLevel(logging.ERROR)

_STRIP_BYTES = 32 << 20  # decoded at once


# Reading --------------------------------------------------------------------------------------------------


def read_photo(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Photo:
    """Photo of a file. Raises InputError (PhotoError for its contents), one line that names the path."""
    shown = printable(path)
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
    exif, orientation, exif_broken = _normalised_exif(image, header)
    icc, icc_dropped = (None, ()) if converted else _usable_icc(image, header, colors)
    iptc_dropped = ("iptc-dropped",) if image.get_typeof("iptc-data") else ()
    xmp = _blob(image, "xmp-data")
    return Photo(
        pixels=np.ascontiguousarray(_turn(pixels, orientation)),
        alpha=None if alpha is None else np.ascontiguousarray(_turn(alpha, orientation)),
        icc=icc,
        exif=exif,
        xmp=normalise_xmp(xmp) if xmp else None,
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


def _normalised_exif(image: pyvips.Image, header: Header) -> tuple[bytes | None, int, tuple[str, ...]]:
    """The EXIF block made fit to be kept, the orientation it asked for, and a warning where it is broken."""
    block = _blob(image, "exif-data")
    if block is None:
        return None, header.orientation, ()
    orientation = read_orientation(block)
    try:
        return normalise_exif(block), orientation, ()
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
