"""Photo -> bytes or a file: what the output's format cannot hold is converted, or named."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyvips

from ray_sr.errors import InputError, ResourceError, printable
from ray_sr.images.carry import carry
from ray_sr.images.header import PhotoError
from ray_sr.images.icc import as_rgb_profile, icc_fits
from ray_sr.images.photo import FORMATS, WRITTEN_SUFFIXES, Metadata, Photo, to_8_bits
from ray_sr.images.savers import Style, error_line, save
from ray_sr.storage.local import written_aside

_MAX_SIDES = {"jpeg": 65500, "webp": 16383, "avif": 16384}
_RGB_ONLY = ("webp", "avif")  # gray is stored as equal red, green and blue
_MAX_SIDE = 10_000_000  # of libvips


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
    if suffix not in WRITTEN_SUFFIXES:
        raise InputError(f"{printable(path)}: the name must end in one of {', '.join(WRITTEN_SUFFIXES)}")
    return WRITTEN_SUFFIXES[suffix]


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes aside, then renames: a reader sees the old file or the whole new one. Raises ResourceError."""
    target = Path(os.fsdecode(path))
    try:
        if target.exists() and not target.is_file():
            raise ResourceError(f"{printable(path)}: exists and is not a file; give another name")
        with written_aside(target) as aside:
            aside.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"{printable(path)}: cannot be written ({error.strerror or error})") from None


def check_result_size(format: str, width: int, height: int) -> None:
    """Raises PhotoError (format-limit) where the format cannot hold so many pixels a side."""
    limit = _MAX_SIDES.get(format, _MAX_SIDE)
    if max(width, height) > limit:
        advice = "use png" if format in _MAX_SIDES else "give a smaller scale"
        raise PhotoError(f"{width}x{height} is over the {limit} a side of {format}; {advice}", "format-limit")


def left_out(photo: Photo, format: str, metadata: Metadata = "keep") -> tuple[str, ...]:
    """What `encode` leaves out or changes in this format, as words like those of `Photo.warnings`."""
    profile = _profile_for(photo, format)
    reasons = {
        "depth-reduced": photo.depth == 16 and format in ("jpeg", "webp", "avif", "jxl"),
        "alpha-flattened": photo.alpha is not None and format == "jpeg",
        "icc-dropped": photo.icc is not None and profile is None and format != "jxl",
        "converted-to-srgb": format == "jxl" and profile is not None,
    }
    words = [word for word, applies in reasons.items() if applies]
    return (*words, *carry(photo, format, metadata, (photo.height, photo.width)).lost)


def _profile_for(photo: Photo, format: str) -> bytes | None:
    """The profile that the format stores for this photo; None where it has none, or none that fits."""
    if photo.icc is None or not icc_fits(photo.icc, photo.channels):
        return None
    return as_rgb_profile(photo.icc) if photo.channels == 1 and format in _RGB_ONLY else photo.icc


def encode(
    photo: Photo,
    format: str = "png",
    *,
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    background: tuple[int, int, int] = (255, 255, 255),
) -> bytes:
    """The photo as png, jpeg (4:4:4), webp, tiff (deflate), avif or jxl; the same photo gives the same bytes.

    quality (1..100) is for jpeg, webp, avif and jxl, lossless for the last three. A profile that fits the pixels
    is kept; jxl is written in sRGB. metadata: all of it, only the rights, or none. JPEG puts transparent pixels
    on `background` (8-bit RGB). `left_out` tells what does not fit into the format. Raises PhotoError
    (format-limit) and ResourceError.
    """
    if format not in FORMATS:
        raise InputError(f"unknown picture format {format!r}; use one of {', '.join(FORMATS)}")
    check_result_size(format, photo.width, photo.height)
    extras = carry(photo, format, metadata, (photo.height, photo.width)).extras
    photo = fit_to_format(photo, format, background)
    try:
        return save(_to_vips(photo), Style(format, extras, photo.icc, quality, lossless))
    except pyvips.Error as error:
        raise ResourceError(f"the picture cannot be encoded as {format} ({error_line(error)})") from None


def fit_to_format(photo: Photo, format: str, background: tuple[int, int, int]) -> Photo:
    """The photo, or a part of one, with the depth, the channels and the profile that the format holds."""
    profile = _profile_for(photo, format)
    if format == "jxl" and profile is not None:
        photo = replace(photo, pixels=_in_srgb(photo, profile))
        profile = None
    if photo.depth == 16 and format in ("jpeg", "webp", "jxl"):
        alpha = None if photo.alpha is None else to_8_bits(photo.alpha)
        photo = replace(photo, pixels=to_8_bits(photo.pixels), alpha=alpha)
    if photo.alpha is not None and format == "jpeg":
        photo = _flatten(photo, background)
    return replace(photo, icc=profile)


def _in_srgb(photo: Photo, profile: bytes) -> np.ndarray:
    """The colours in sRGB, those outside of it at its border."""
    image = _to_vips(replace(photo, alpha=None))
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    options = {"embedded": True, "intent": "relative", "depth": photo.depth, "black_point_compensation": True}
    converted = np.asarray(image.icc_transform("srgb", **options).numpy())
    return converted.reshape(photo.height, photo.width, -1)[..., : photo.channels].astype(photo.pixels.dtype)


def _flatten(photo: Photo, background: tuple[int, int, int]) -> Photo:
    """The photo over a plain background (8-bit photos); gray photos take the luma of the background."""
    color = np.array(background, np.float32)
    if photo.channels == 1:
        color = color @ np.array([[0.299], [0.587], [0.114]], np.float32)
    assert photo.alpha is not None
    opacity = photo.alpha[..., None].astype(np.float32) / 255
    mixed = photo.pixels * opacity + color * (1 - opacity)
    return replace(photo, pixels=np.rint(mixed).astype(np.uint8), alpha=None)


def _to_vips(photo: Photo) -> pyvips.Image:
    samples = photo.pixels
    if photo.alpha is not None:
        samples = np.concatenate([samples, photo.alpha[..., None]], axis=2)
    samples = np.ascontiguousarray(samples)
    kinds = {(8, 1): "b-w", (8, 3): "srgb", (16, 1): "grey16", (16, 3): "rgb16"}
    storage = "uchar" if photo.depth == 8 else "ushort"
    image = pyvips.Image.new_from_memory(samples, photo.width, photo.height, samples.shape[2], storage)
    return image.copy(interpretation=kinds[photo.depth, photo.channels])
