"""Animated PNG, written frame by frame (PNG third edition, sections 11.3.6 and 12.2).

Each frame is a rectangle around what differs from the one before it, encoded by libvips as a PNG of its own, whose
pixel data become the frame's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from typing import BinaryIO

import numpy as np
import pyvips

from ray_sr.images.png_header import SIGNATURE, png_chunk, png_chunks

_LARGEST = 65535


def write_apng(
    file: BinaryIO, frames: Iterable[np.ndarray], durations: list[Fraction], plays: int, icc: bytes | None
) -> None:
    """frames: uint8 H×W×3 or H×W×4, all alike. durations: seconds, one for each. plays: 0 for ever."""
    before: np.ndarray | None = None
    sequence = 0
    for frame, duration in zip(frames, durations, strict=True):
        top, bottom, left, right = _changed(frame, before)
        head, data = _encoded(frame[top:bottom, left:right])
        if before is None:
            file.write(
                SIGNATURE + png_chunk(b"IHDR", head) + png_chunk(b"acTL", struct.pack(">II", len(durations), plays))
            )
            if icc:
                file.write(png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(icc)))
        delay = duration.limit_denominator(_LARGEST)
        if delay.numerator > _LARGEST:
            delay = Fraction(min(_LARGEST, round(duration)), 1)
        place = right - left, bottom - top, left, top
        control = struct.pack(">IIIIIHHBB", sequence, *place, delay.numerator, delay.denominator, 0, 0)
        file.write(png_chunk(b"fcTL", control))
        sequence += 1
        for piece in data:
            if before is None:
                file.write(png_chunk(b"IDAT", piece))
            else:
                file.write(png_chunk(b"fdAT", struct.pack(">I", sequence) + piece))
                sequence += 1
        before = frame
    file.write(png_chunk(b"IEND", b""))


def _changed(frame: np.ndarray, before: np.ndarray | None) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the rectangle that holds all differences; one pixel where there are none."""
    if before is None:
        return 0, frame.shape[0], 0, frame.shape[1]
    differs = (frame != before).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 1, 0, 1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _encoded(pixels: np.ndarray) -> tuple[bytes, list[bytes]]:
    """The header's body and the bodies of the pixel data of a PNG of this rectangle."""
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels), interpretation="srgb")
    data = image.pngsave_buffer(compression=6, filter="all", keep="none", bitdepth=8)
    chunks = [(kind, data[start + 8 : end - 4]) for kind, start, end in png_chunks(data)]
    return chunks[0][1], [body for kind, body in chunks if kind == b"IDAT"]
