"""The quality that a JPEG was stored with, from its quantisation tables: no decoder touches the bytes."""

from __future__ import annotations

_START, _TABLES, _SCAN, _END = 0xD8, 0xDB, 0xDA, 0xD9
_STANDARD_SUM = 3688  # of the 64 steps for brightness in the JPEG standard (ITU-T T.81, table K.1)


def jpeg_quality(data: bytes) -> int | None:
    """1 to 100 on libjpeg's scale, from the table for brightness; None where `data` is no JPEG or has none.

    Encoders with tables of their own get the quality whose standard table has the same mean step. Below 20 it is
    read too high, because steps end at 255. The first bytes of a file are enough where they reach to its tables,
    which lie after its metadata.
    """
    steps = _brightness_steps(data)
    if not steps:
        return None
    percent = 100 * sum(steps) / _STANDARD_SUM
    quality = 100 - percent / 2 if percent <= 100 else 5000 / percent
    return min(max(round(quality), 1), 100)


def _brightness_steps(data: bytes) -> list[int]:
    """The 64 steps of table 0, in the order of the file."""
    if data[:2] != bytes((0xFF, _START)):
        return []
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        if marker in (_SCAN, _END):
            break
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _TABLES and (steps := _table_zero(data[place + 4 : place + 2 + length])):
            return steps
        place += 2 + max(length, 2)
    return []


def _table_zero(body: bytes) -> list[int]:
    while body:
        size = 2 if body[0] >> 4 else 1
        values, number = body[1 : 1 + 64 * size], body[0] & 15
        if len(values) == 64 * size and number == 0:
            return [int.from_bytes(values[at : at + size], "big") for at in range(0, len(values), size)]
        body = body[1 + 64 * size :]
    return []
