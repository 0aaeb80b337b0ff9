"""A picture that comes in bands of rows, from the top, into a file: never held whole, whatever its size.

The bands travel through a pipe, as a PNG without compression, to libvips in a thread, which encodes them like
any picture. So a file of bands has the very bytes that `ray_sr.images.write_photo` gives the whole.
"""

from __future__ import annotations

import os
import select
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyvips

from ray_sr.errors import ResourceError
from ray_sr.images.carry import carry
from ray_sr.images.encode import check_result_size, fit_to_format
from ray_sr.images.photo import Metadata, Photo
from ray_sr.images.png_header import SIGNATURE, png_chunk
from ray_sr.images.savers import Style, error_line, save_file
from ray_sr.storage.local import written_aside

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels
_PIECE_BYTES = 4 << 20
_SECONDS_BETWEEN_LOOKS = 0.2


class _Stopped(Exception):
    """The encoder takes no more: it has failed."""


def write_bands(
    path: str | os.PathLike[str],
    photo: Photo,
    size: tuple[int, int],
    bands: Iterable[tuple[np.ndarray, np.ndarray | None]],
    *,
    format: str,
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    background: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Writes a picture of this (height, width) aside, then renames it into place.

    bands: (rows×width×C, rows×width opacity or None) of the depth and channels of `photo`, which gives profile
    and metadata. Options as for `ray_sr.images.encode`; webp, avif and jxl are held whole while they are encoded.
    Raises what `bands` raises, PhotoError (format-limit) and ResourceError, one line.
    """
    check_result_size(format, *size[::-1])
    extras = carry(photo, format, metadata, size).extras
    kept = fit_to_format(_corner(photo), format, background)
    style = Style(format, extras, kept.icc, quality, lossless)
    parts = (part for colour, alpha in bands for part in _parts(photo, colour, alpha))
    fitted = (fit_to_format(part, format, background) for part in parts)
    target = Path(os.fsdecode(path))
    try:
        with written_aside(target) as aside:
            _write(aside, style, _header(kept, size), map(_samples, fitted))
    except pyvips.Error as error:
        raise ResourceError(f"{target}: cannot be encoded as {format} ({error_line(error)})") from None
    except OSError as error:
        raise ResourceError(f"{target}: cannot be written ({error.strerror or error})") from None


def _corner(photo: Photo) -> Photo:
    """One pixel of the photo: its kind and its metadata, whatever its size."""
    alpha = None if photo.alpha is None else photo.alpha[:1, :1]
    return replace(photo, pixels=photo.pixels[:1, :1], alpha=alpha)


def _parts(photo: Photo, colour: np.ndarray, alpha: np.ndarray | None) -> Iterator[Photo]:
    """The band in pieces, so that what is made of them stays small."""
    several = max(1, _PIECE_BYTES // colour[0].nbytes)
    for top in range(0, len(colour), several):
        rows = np.s_[top : top + several]
        yield replace(photo, pixels=colour[rows], alpha=None if alpha is None else alpha[rows])


def _samples(photo: Photo) -> np.ndarray:
    if photo.alpha is None:
        return photo.pixels
    return np.concatenate([photo.pixels, photo.alpha[..., None]], axis=2)


def _write(aside: Path, style: Style, header: bytes, bands: Iterator[np.ndarray]) -> None:
    """The encoder reads in a thread what this one writes; the failure that came first is raised."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(_save, read_end, aside, style)
        try:
            for piece in _png(header, bands):
                _send(write_end, piece, saving)
        except (_Stopped, BrokenPipeError):
            pass  # the encoder's own error follows
        finally:
            os.close(write_end)
        saving.result()


def _save(descriptor: int, aside: Path, style: Style) -> None:
    try:
        source = pyvips.Source.new_from_descriptor(descriptor)
    finally:
        os.close(descriptor)
    image = pyvips.Image.pngload_source(source, access="sequential", fail_on="error", unlimited=True)
    save_file(image, aside, style)


def _send(descriptor: int, piece: bytes, saving: Future[None]) -> None:
    rest = memoryview(piece)
    while rest:
        if saving.done():
            raise _Stopped
        if select.select([], [descriptor], [], _SECONDS_BETWEEN_LOOKS)[1]:
            rest = rest[os.write(descriptor, rest) :]


def _header(photo: Photo, size: tuple[int, int]) -> bytes:
    """IHDR of a PNG of such a photo (PNG specification, third edition, section 11.2.1)."""
    channels = photo.channels + (photo.alpha is not None)
    return struct.pack(">IIBBBBB", size[1], size[0], photo.depth, _COLOUR_TYPES[channels], 0, 0, 0)


def _png(header: bytes, bands: Iterator[np.ndarray]) -> Iterator[bytes]:
    """A PNG whose pixels are stored as they are."""
    yield SIGNATURE + png_chunk(b"IHDR", header)
    stored = zlib.compressobj(0)
    for band in bands:
        lines = band.astype(band.dtype.newbyteorder(">"), copy=False).reshape(len(band), -1).view(np.uint8)
        unfiltered = np.pad(lines, ((0, 0), (1, 0)))
        yield png_chunk(b"IDAT", stored.compress(unfiltered.data))
    yield png_chunk(b"IDAT", stored.flush())
    yield png_chunk(b"IEND", b"")
