"""How the service talks to its codec processes: a JSON head and raw buffers, through pipes.

Nothing that is received can name code to run, so a codec that was taken over by a picture stays in its process.

    message = uint32 length of the head | uint32 number of buffers | uint64 length of each | head | buffers
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from ray_sr.images import Photo

Buffer = bytes | bytearray | memoryview

MOST_BYTES = 1 << 36
_COUNTS = struct.Struct("<II")


def send(stream: BinaryIO, head: dict[str, Any], buffers: Sequence[Buffer] = ()) -> None:
    """Writes one message. Raises BrokenPipeError where nobody reads."""
    text = json.dumps(head).encode()
    lengths = [len(memoryview(buffer).cast("B")) for buffer in buffers]
    stream.write(_COUNTS.pack(len(text), len(buffers)) + struct.pack(f"<{len(lengths)}Q", *lengths) + text)
    for buffer in buffers:
        stream.write(buffer)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """Reads one message. Raises EOFError where it ends early or makes no sense."""
    size, count = _COUNTS.unpack(_read(stream, _COUNTS.size))
    if count > 16 or size > 1 << 20:
        raise EOFError("not a message")
    lengths = struct.unpack(f"<{count}Q", _read(stream, 8 * count))
    if sum(lengths) > MOST_BYTES:
        raise EOFError("not a message")
    head = json.loads(_read(stream, size))
    return head, [_read(stream, length) for length in lengths]


def _read(stream: BinaryIO, length: int) -> bytearray:
    found = bytearray(length)
    view, position = memoryview(found), 0
    while position < length:
        several = stream.readinto(view[position:])  # type: ignore[attr-defined]
        if not several:
            raise EOFError("the other end is gone")
        position += several
    return found


_EXTRAS = ("icc", "exif", "xmp", "iptc", "png_colour", "png_text")


def pack_photo(photo: Photo) -> tuple[dict[str, Any], list[Buffer]]:
    """Head and buffers of a photo."""
    present = [name for name in _EXTRAS if getattr(photo, name) is not None]
    head = {
        "shape": photo.pixels.shape,
        "depth": photo.depth,
        "alpha": photo.alpha is not None,
        "extras": present,
        "density": photo.density,
        "warnings": photo.warnings,
    }
    buffers: list[Buffer] = [_bytes_of(photo.pixels)]
    if photo.alpha is not None:
        buffers.append(_bytes_of(photo.alpha))
    return head, buffers + [getattr(photo, name) for name in present]


def unpack_photo(head: dict[str, Any], buffers: Sequence[bytearray]) -> Photo:
    """The photo of `pack_photo`. Raises ValueError where head and buffers do not fit."""
    rest = list(buffers)
    dtype = np.dtype(np.uint8 if head["depth"] == 8 else np.uint16)
    height, width, channels = head["shape"]
    pixels = np.frombuffer(rest.pop(0), dtype).reshape(height, width, channels)
    alpha = np.frombuffer(rest.pop(0), dtype).reshape(height, width) if head["alpha"] else None
    extras = {name: bytes(buffer) for name, buffer in zip(head["extras"], rest, strict=True) if name in _EXTRAS}
    density = tuple(head["density"]) if head["density"] else None
    return Photo(pixels, alpha, density=density, warnings=tuple(head["warnings"]), **extras)


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")
