"""Messages through pipes between this process and a decoder: a head of JSON and a body of bytes."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_SIZES = struct.Struct(">IQ")
MOST_BYTES = 1 << 34


def send(stream: BinaryIO, head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Writes one message."""
    text = json.dumps(head).encode()
    stream.write(_SIZES.pack(len(text), len(body)))
    stream.write(text)
    stream.write(body)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytearray]:
    """Reads one message. Raises EOFError where the stream ends, ValueError for what is no message."""
    head_size, body_size = _SIZES.unpack(_exactly(stream, _SIZES.size))
    if head_size + body_size > MOST_BYTES:
        raise ValueError("not a message")
    head = json.loads(bytes(_exactly(stream, head_size)))
    return head, _exactly(stream, body_size)


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return data
