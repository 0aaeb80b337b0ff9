"""EXIF blocks: read, made fit for another picture, and given further tags.

Blocks are edited in place, byte for byte, because maker notes hold offsets that a rewritten block would break;
a directory that grows moves to the end. Sources: Exif 3.0 (CIPA DC-008) section 4; TIFF 6.0 section 2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

ARTIST, COPYRIGHT, DESCRIPTION, SOFTWARE, USER_COMMENT = 0x013B, 0x8298, 0x010E, 0x0131, 0x9286

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 2, 3, 4, 5, 7
_ORIENTATION = 0x0112
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_COLOUR_SPACE, _INTEROPERABILITY = 0xA001, 0x0001
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_CREDITS = (ARTIST, COPYRIGHT)
_MAX_ENTRIES = 1000
EXIF_PREFIX = b"Exif\0\0"


class BrokenExif(ValueError):
    """An EXIF block whose directories point outside of it or at each other."""


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    count: int
    at: int
    value_at: int
    size: int


def read_orientation(exif: bytes) -> int:
    """Orientation 1..8 of a block (with or without its `Exif` prefix); 1 where absent, invalid or broken."""
    block = exif.removeprefix(EXIF_PREFIX)
    try:
        order, first = _byte_order(block)
        values = [_integer(block, order, e) for e in _entries(block, order, first)[0] if e.tag == _ORIENTATION]
    except (BrokenExif, struct.error):
        return 1
    return values[0] if values and 1 <= values[0] <= 8 else 1


def normalise_exif(exif: bytes) -> bytes:
    """The block with orientation 1, without the thumbnail and without bytes that no directory refers to.

    Raises BrokenExif where the directories cannot be trusted.
    """
    block = bytearray(exif.removeprefix(EXIF_PREFIX))
    order, first, directories = _walk(block)
    kept = bytearray(len(block))
    end = 0
    for start, entries in directories.items():
        spans = [(start, 2 + 12 * len(entries) + 4), *((e.value_at, e.size) for e in entries)]
        for at, size in [(0, 8), *spans]:
            kept[at : at + size] = block[at : at + size]
            end = max(end, at + size)
    for entry in directories[first]:
        if entry.tag == _ORIENTATION:
            _put(kept, order, entry, 1)
    for start, entries in directories.items():
        struct.pack_into(order + "I", kept, start + 2 + 12 * len(entries), 0)
    return bytes(kept[:end])


def resize_exif(exif: bytes, width: int, height: int, density: tuple[float, float] | None = None) -> bytes:
    """The block of `normalise_exif` with its width, height and density tags, where it has them, set to these."""
    block = bytearray(exif)
    order, first, directories = _walk(block)
    for entries in directories.values():
        for entry in entries:
            if entry.tag in _WIDTHS or entry.tag in _HEIGHTS:
                _put(block, order, entry, width if entry.tag in _WIDTHS else height)
    if density is not None and read_density(exif) is not None:
        for entry in directories[first]:
            if entry.tag in (_X_RESOLUTION, _Y_RESOLUTION):
                value = _rational(density[entry.tag == _Y_RESOLUTION], order)
                block[entry.value_at : entry.value_at + 8] = value
            elif entry.tag == _RESOLUTION_UNIT:
                _put(block, order, entry, 2)
    return bytes(block)


def credits_only(exif: bytes) -> bytes | None:
    """A new block of nothing but the artist and the copyright notice; None where there is neither."""
    found = {tag: text for tag in _CREDITS if (text := read_text(exif, tag))}
    return with_texts(None, found) if found else None


def read_text(exif: bytes, tag: int) -> str | None:
    """Text of a tag, of UserComment too; None where it is absent or empty."""
    try:
        order, _, directories = _walk(exif)
    except BrokenExif:
        return None
    for entries in directories.values():
        for entry in entries:
            if entry.tag == tag and entry.kind in (_ASCII, _UNDEFINED, 129):
                raw = bytes(exif[entry.value_at : entry.value_at + entry.size])
                return _comment(raw, order) if tag == USER_COMMENT else _decoded(raw)
    return None


def _decoded(raw: bytes) -> str | None:
    # Copyright has two parts, the photographer's and the editor's, with a zero byte between them.
    parts = [part.strip() for part in raw.split(b"\0")]
    text = b", ".join(part for part in parts if part)
    try:
        return text.decode("utf-8") or None
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _comment(raw: bytes, order: str) -> str | None:
    if raw[:8] == b"UNICODE\0":
        even = raw[8 : 8 + (len(raw) - 8) // 2 * 2]
        codec = "utf-16-le" if order == "<" and even[1:2] == b"\0" else "utf-16-be"
        return even.decode(codec, "replace").strip("\0 ") or None
    return _decoded(raw[8:])


def read_density(exif: bytes) -> tuple[float, float] | None:
    """Dots per inch, across and down; None where the block does not say them or makes no sense."""
    try:
        order, first, directories = _walk(exif.removeprefix(EXIF_PREFIX))
        block = exif.removeprefix(EXIF_PREFIX)
        entries = {entry.tag: entry for entry in directories[first]}
        unit = _integer(block, order, entries[_RESOLUTION_UNIT]) if _RESOLUTION_UNIT in entries else 2
        per_inch = {2: 1.0, 3: 2.54}[unit]
        across, down = (_ratio(block, order, entries[tag]) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    except (BrokenExif, KeyError, ZeroDivisionError):
        return None
    return (across * per_inch, down * per_inch) if across and down else None


def _ratio(block: bytes, order: str, entry: _Entry) -> float:
    if entry.kind != _RATIONAL or entry.count != 1:
        raise BrokenExif("a ratio tag holds something else")
    over, under = struct.unpack_from(order + "II", block, entry.value_at)
    return float(over / under)


def says_adobe_rgb(exif: bytes) -> bool:
    """Whether the block names Adobe RGB: ColorSpace 2, or uncalibrated with the interoperability index R03."""
    try:
        order, _, directories = _walk(exif)
        entries = [entry for directory in directories.values() for entry in directory]
        space = next((_integer(exif, order, entry) for entry in entries if entry.tag == _COLOUR_SPACE), 1)
    except BrokenExif:
        return False
    indices = [exif[entry.value_at : entry.value_at + 3] for entry in entries if entry.tag == _INTEROPERABILITY]
    return space == 2 or (space == 0xFFFF and b"R03" in indices)


def with_texts(exif: bytes | None, texts: Mapping[int, str]) -> bytes | None:
    """The block with these texts under their tags; tags that are there stay. None where there is nothing."""
    return _with_fields(exif, {tag: _text_field(text, tag) for tag, text in texts.items()})


def with_density(exif: bytes | None, density: tuple[float, float]) -> bytes:
    """The block with this density, in dots per inch across and down."""
    order = _walk(exif)[0] if exif else "<"
    across, down = (_rational(value, order) for value in density)
    fields = {_X_RESOLUTION: (_RATIONAL, 1, across), _Y_RESOLUTION: (_RATIONAL, 1, down)}
    unit = {_RESOLUTION_UNIT: (_SHORT, 1, struct.pack(order + "H", 2))}
    return _with_fields(exif, fields | unit) or b""


def _with_fields(exif: bytes | None, fields: Mapping[int, _Field]) -> bytes | None:
    block = bytearray(exif or b"II*\0\x08\0\0\0" + bytes(6))
    order, first, directories = _walk(block)
    there = {entry.tag for directory in directories.values() for entry in directory}
    added = {tag: field for tag, field in fields.items() if tag not in there}
    if not added:
        return exif
    if USER_COMMENT in added:
        below = {USER_COMMENT: added.pop(USER_COMMENT)}
        pointer = next((e for e in directories[first] if e.tag == _EXIF_IFD), None)
        start = None if pointer is None else _integer(block, order, pointer)
        place = _grown(block, order, start, below)
        if pointer is None:
            added[_EXIF_IFD] = (_LONG, 1, struct.pack(order + "I", place))
        else:
            struct.pack_into(order + "I", block, pointer.at + 8, place)
    struct.pack_into(order + "I", block, 4, _grown(block, order, first, added))
    return bytes(block)


_Field = tuple[int, int, bytes]  # type, count and bytes


def _text_field(text: str, tag: int) -> _Field:
    if tag != USER_COMMENT:
        raw = text.replace("\0", " ").encode() + b"\0"
        return _ASCII, len(raw), raw
    raw = b"ASCII\0\0\0" + text.encode() if text.isascii() else b"UNICODE\0" + text.encode("utf-16-be")
    return _UNDEFINED, len(raw), raw


def _rational(value: float, order: str) -> bytes:
    under = 1 if abs(value - round(value)) < 1e-6 else 10000
    return struct.pack(order + "II", min(round(value * under), 0xFFFFFFFF), under)


def _grown(block: bytearray, order: str, start: int | None, added: Mapping[int, _Field]) -> int:
    """Puts the directory at `start`, or an empty one, with further fields at the end; the place of the new one."""
    entries = _entries(block, order, start)[0] if start else []
    rows = {entry.tag: bytes(block[entry.at : entry.at + 12]) for entry in entries}
    block += b"\0" * (len(block) % 2)
    place = len(block)
    values = b""
    end = place + 2 + 12 * (len(rows) + len(added)) + 4
    for tag, (kind, count, raw) in added.items():
        field = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", end + len(values))
        rows[tag] = struct.pack(order + "HHI", tag, kind, count) + field
        values += (raw + b"\0" * (len(raw) % 2)) if len(raw) > 4 else b""
    table = b"".join(row for _, row in sorted(rows.items()))
    block += struct.pack(order + "H", len(rows)) + table + bytes(4) + values
    return place


def _walk(block: bytes | bytearray) -> tuple[str, int, dict[int, list[_Entry]]]:
    """Byte order, offset of the first directory, and the entries of each directory except the thumbnail's."""
    try:
        order, first = _byte_order(block)
        directories: dict[int, list[_Entry]] = {}
        waiting = [first]
        while waiting:
            start = waiting.pop()
            if start in directories:
                raise BrokenExif("two directories are the same")
            directories[start] = _entries(block, order, start)[0]
            children = [e for e in directories[start] if e.tag in (_EXIF_IFD, _GPS_IFD, _INTEROP_IFD)]
            waiting += [_integer(block, order, child) for child in children]
    except struct.error:
        raise BrokenExif("the block is cut short") from None
    return order, first, directories


def _byte_order(block: bytes | bytearray) -> tuple[str, int]:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        raise BrokenExif("the block has no TIFF header")
    return order, struct.unpack_from(order + "I", block, 4)[0]


def _entries(block: bytes | bytearray, order: str, start: int) -> tuple[list[_Entry], int]:
    """Entries of the directory at `start` and the offset of the next one."""
    count = struct.unpack_from(order + "H", block, start)[0]
    if start < 8 or count > _MAX_ENTRIES:
        raise BrokenExif("a directory is not one")
    entries = []
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length, value = struct.unpack_from(order + "HHII", block, at)
        size = _TYPE_SIZES.get(kind, 0) * length
        value_at = at + 8 if size <= 4 else value
        if value_at + size > len(block):
            raise BrokenExif("a value lies outside of the block")
        entries.append(_Entry(tag, kind, length, at, value_at, size))
    return entries, struct.unpack_from(order + "I", block, start + 2 + 12 * count)[0]


def _integer(block: bytes | bytearray, order: str, entry: _Entry) -> int:
    code = {_SHORT: "H", _LONG: "I", 13: "I"}.get(entry.kind)
    if code is None or entry.count != 1:
        raise BrokenExif("an integer tag holds something else")
    return struct.unpack_from(order + code, block, entry.value_at)[0]


def _put(block: bytearray, order: str, entry: _Entry, value: int) -> None:
    """Overwrites the entry with one integer, which always fits into its own 12 bytes."""
    if value < 1 << 16:
        struct.pack_into(order + "HHIHH", block, entry.at, entry.tag, _SHORT, 1, value, 0)
    else:
        struct.pack_into(order + "HHII", block, entry.at, entry.tag, _LONG, 1, value)
