"""Bytes <-> Photo: the only place that decodes bytes nobody vouched for.

A file is gated on its first bytes, refused on its header alone where it is a bomb, an animation or damaged,
and only then decoded by libvips. The pixels are turned upright, converted to gray or RGB, and otherwise left
alone: the profile, the depth and the transparency that came in go out again.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyvips

from ray_sr.errors import InputError, printable
from ray_sr.images.exif import BrokenExif, normalise_exif, read_density, read_orientation
from ray_sr.images.headers import Header, PhotoError, scan_header, sniff
from ray_sr.images.icc import icc_fits
from ray_sr.images.iptc import records_in
from ray_sr.images.loaders import Loaded, load_pixels
from ray_sr.images.photo import DEFAULT_LIMITS, READ_FORMATS, Limits, Photo
from ray_sr.images.salvage import has_junk_before_end, salvage, without_junk
from ray_sr.images.xmp import normalise_xmp

pyvips.block_untrusted_set(True)
pyvips.cache_set_max(0)
pyvips.concurrency_set(1)
# It tells of every thread pool and of every oddity in a file; what matters arrives as an exception.
logging.getLogger("pyvips").setLevel(logging.ERROR)

_SALVAGED = ("jpeg", "png")
_TURNED_BY_DECODER = ("avif", "heif", "jxl")


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
        raise InputError(f"{shown}: is {kind}; give a picture file (upscale takes a pipe, too, if it is alone)")
    raise PhotoError(f"{shown}: {status.st_size} bytes are over the limit of {max_bytes}", "payload-too-large")


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Photo:
    """Photo of an encoded picture. Raises PhotoError: a one-line message and a word for machines."""
    if not data:
        raise PhotoError("the file is empty")
    if len(data) > limits.max_bytes:
        raise PhotoError(f"{len(data)} bytes are over the limit of {limits.max_bytes}", "payload-too-large")
    kind = sniff(data)
    if kind not in limits.formats or kind not in READ_FORMATS:
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
    data, header = without_junk(data, header)
    loaded = _load(data, header, limits)
    colors = loaded.pixels.shape[2]
    exif, orientation, exif_broken = _normalised_exif(header.exif or loaded.exif, header)
    icc, icc_dropped = _usable_icc(_profile(header, loaded), colors)
    iptc = records_in(header.iptc or loaded.iptc or b"")
    xmp, claims = normalise_xmp(header.xmp or loaded.xmp or b"", orientation != 1 or header.turned)
    density = header.density or read_density(exif or b"")
    warnings = header.warnings + loaded.warnings + icc_dropped + exif_broken + claims
    return Photo(
        pixels=np.ascontiguousarray(_turn(loaded.pixels, orientation)),
        alpha=None if loaded.alpha is None else np.ascontiguousarray(_turn(loaded.alpha, orientation)),
        icc=icc,
        exif=exif,
        xmp=xmp or None,
        iptc=iptc,
        png_colour=None if icc_dropped else header.png_colour,
        png_text=header.png_text,
        density=_turned_density(density, orientation),
        warnings=_told_once(warnings),
    )


def _load(data: bytes, header: Header, limits: Limits) -> Loaded:
    """The pixels; those of damaged files as far as they go, where that is asked for."""
    strict_on = "error" if header.format == "tiff" else "warning"
    whole = header.complete and not header.problems
    if limits.strict:
        loaded = load_pixels(data, header, strict_on)
    elif header.format not in _SALVAGED:
        loaded = _load_undamaged(data, header)
    else:
        try:
            loaded = load_pixels(data, header, strict_on) if whole else salvage(data, header)
        except PhotoError:
            if not whole:
                raise
            loaded = salvage(data, header)
    if header.format == "jpeg" and has_junk_before_end(data, header, loaded):
        loaded = replace(loaded, warnings=(*loaded.warnings, "junk-between-markers"))
    return loaded


def _load_undamaged(data: bytes, header: Header) -> Loaded:
    """Pixels in a format of which parts are not read. Raises PhotoError, which says so."""
    try:
        return load_pixels(data, header, "error")
    except PhotoError as error:
        if error.reason != "image-corrupt":
            raise
        kind = header.format.upper()
        raise PhotoError(f"{error}: of cut or damaged {kind} files nothing is read") from None


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels upright. Orientations 1..8 as in Exif 3.0, section 4.6.5.1.6; others leave them alone."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _normalised_exif(block: bytes | None, header: Header) -> tuple[bytes | None, int, tuple[str, ...]]:
    """The EXIF block made fit to be kept, the orientation it asked for, and a warning where it is broken."""
    if block is None:
        return None, header.orientation, ()
    orientation = 1 if header.format in _TURNED_BY_DECODER else read_orientation(block)
    try:
        return normalise_exif(block), orientation, ()
    except BrokenExif:
        return None, orientation, ("exif-broken",)


def _profile(header: Header, loaded: Loaded) -> bytes | None:
    """The profile, from whoever of the two reads it; b"" for one that is damaged."""
    return header.icc if header.format in ("png", "avif", "heif") else loaded.icc


def _usable_icc(profile: bytes | None, colors: int) -> tuple[bytes | None, tuple[str, ...]]:
    return (profile, ()) if profile is None or icc_fits(profile, colors) else (None, ("icc-dropped",))


def _told_once(warnings: tuple[str, ...]) -> tuple[str, ...]:
    """Each word once; what follows the picture is one of those that say what it was, where one does."""
    known = {"motion-photo-dropped", "gainmap-dropped", "depth-map-dropped"} & set(warnings)
    return tuple(word for word in dict.fromkeys(warnings) if word != "trailer-dropped" or not known)


def _turned_density(density: tuple[float, float] | None, orientation: int) -> tuple[float, float] | None:
    """Dots per inch of the upright picture; None for values that no device has."""
    if density is None or min(density) < 0.1 or max(density) > 1e5:
        return None
    return density[::-1] if orientation in (5, 6, 7, 8) else density
