"""The metadata that travels with a picture: EXIF, XMP, ICC and density, and their places in the containers.

EXIF blocks are edited in place, byte for byte, because maker notes hold offsets that a rewritten block would
break. Sources: Exif 3.0 (CIPA DC-008) section 4; ICC.1:2022 section 7.2; PNG third edition 11.3; JFIF 1.02;
XMP part 3; WebP container, RFC 9649.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ray_sr.images.headers import MAX_ICC_BYTES

MAX_JPEG_EXIF = 65533 - 6
MAX_JPEG_XMP = 65533 - 29

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_SHORT, _LONG = 3, 4
_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_CREDITS = (0x013B, 0x8298)  # Artist, Copyright
_MAX_ENTRIES = 1000
_EXIF_PREFIX, _XMP_PREFIX = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


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


# EXIF -----------------------------------------------------------------------------------------------------


def read_orientation(exif: bytes) -> int:
    """Orientation 1..8 of a block (with or without its `Exif` prefix); 1 where absent, invalid or broken."""
    block = exif.removeprefix(_EXIF_PREFIX)
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
    block = bytearray(exif.removeprefix(_EXIF_PREFIX))
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


def resize_exif(exif: bytes, width: int, height: int) -> bytes:
    """The block of `normalise_exif` with its width and height tags, where it has them, set to these pixels."""
    block = bytearray(exif)
    order, _, directories = _walk(block)
    for entries in directories.values():
        for entry in entries:
            if entry.tag in _WIDTHS or entry.tag in _HEIGHTS:
                _put(block, order, entry, width if entry.tag in _WIDTHS else height)
    return bytes(block)


def credits_only(exif: bytes) -> bytes | None:
    """A new block of nothing but the artist and the copyright notice; None where there is neither."""
    _, first, directories = _walk(exif)
    found = sorted((e for e in directories[first] if e.tag in _CREDITS and e.size), key=lambda e: e.tag)
    if not found:
        return None
    table, values = b"", b""
    start = 8 + 2 + 12 * len(found) + 4
    for entry in found:
        text = bytes(exif[entry.value_at : entry.value_at + entry.size])
        if len(text) <= 4:
            field = text.ljust(4, b"\0")
        else:
            field = struct.pack("<I", start + len(values))
            values += text + b"\0" * (len(text) % 2)
        table += struct.pack("<HHI", entry.tag, entry.kind, len(text)) + field
    return b"II*\0" + struct.pack("<IH", 8, len(found)) + table + bytes(4) + values


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


# XMP and ICC ----------------------------------------------------------------------------------------------

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|\s*>\s*))[2-8]")


def normalise_xmp(xmp: bytes) -> bytes:
    """The packet with tiff:Orientation, where it has one, set to 1; its length does not change."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def icc_fits(profile: bytes, channels: int) -> bool:
    """Whether the bytes are a whole display, input or output profile for gray (1) or RGB (3) pixels."""
    if not 128 <= len(profile) <= MAX_ICC_BYTES or profile[36:40] != b"acsp":
        return False
    whole = struct.unpack_from(">I", profile)[0] <= len(profile)
    space = {1: b"GRAY", 3: b"RGB "}[channels]
    return whole and profile[12:16] in (b"mntr", b"scnr", b"prtr", b"spac") and profile[16:20] == space


def icc_is_linear(profile: bytes | None) -> bool:
    """Whether the profile's tone curve is a straight line, so that its values are proportional to light.

    ICC.1:2022, sections 7.3 (tag table), 10.6 (curveType) and 10.18 (parametricCurveType).
    """
    if profile is None or len(profile) < 132:
        return False
    tags = min(struct.unpack_from(">I", profile, 128)[0], (len(profile) - 132) // 12)
    for tag in range(tags):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * tag)
        if name in (b"rTRC", b"kTRC"):
            return _is_straight(profile[start : start + size])
    return False


def _is_straight(curve: bytes) -> bool:
    if curve[:4] == b"curv" and len(curve) >= 12:
        points = struct.unpack_from(">I", curve, 8)[0]
        return points == 0 or (points == 1 and curve[12:14] == b"\1\0")
    return curve[:4] == b"para" and curve[8:10] == b"\0\0" and curve[12:16] == b"\0\1\0\0"


# Containers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extras:
    """What is put into an encoded picture beside its pixels and profile. density is dots per inch."""

    exif: bytes | None = None
    xmp: bytes | None = None
    density: tuple[float, float] | None = None


def add_to_png(data: bytes, extras: Extras, icc: bytes | None) -> bytes:
    """The PNG with profile, density, EXIF and XMP chunks behind its header, instead of the density it had."""
    added = []
    if icc:
        added.append(_png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(icc)))
    if extras.density:
        across, down = (min(round(d / 0.0254), 0x7FFFFFFF) for d in extras.density)
        added.append(_png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if extras.exif:
        added.append(_png_chunk(b"eXIf", extras.exif))
    if extras.xmp:
        added.append(_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + extras.xmp))
    header_end = 8 + 25
    rest = b"".join(chunk for kind, chunk in _png_parts(data, header_end) if kind != b"pHYs")
    return data[:header_end] + b"".join(added) + rest


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_parts(data: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Chunks up to the pixels, then all the rest as one part."""
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            yield kind, data[position:]
            return
        yield kind, data[position : position + 12 + length]
        position += 12 + length


def add_to_jpeg(data: bytes, extras: Extras) -> bytes:
    """The JPEG (which has no JFIF segment) with JFIF, EXIF and XMP segments as its first ones."""
    unit, across, down = 0, 1, 1
    if extras.density:
        unit, across, down = 1, *(min(max(round(d), 1), 65535) for d in extras.density)
    segments = _jpeg_segment(0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, unit, across, down, 0, 0))
    if extras.exif:
        segments += _jpeg_segment(0xE1, _EXIF_PREFIX + extras.exif)
    if extras.xmp:
        segments += _jpeg_segment(0xE1, _XMP_PREFIX + extras.xmp)
    return data[:2] + segments + data[2:]


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def add_to_webp(data: bytes, extras: Extras, width: int, height: int, alpha: bool) -> bytes:
    """The WebP with EXIF and XMP chunks, in the extended format where there are any."""
    if not extras.exif and not extras.xmp:
        return data
    body = data[12:]
    if body[:4] != b"VP8X":
        sizes = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        body = _riff_chunk(b"VP8X", bytes([0x10 if alpha else 0, 0, 0, 0]) + sizes) + body
    flags = body[8] | (0x08 if extras.exif else 0) | (0x04 if extras.xmp else 0)
    body = body[:8] + bytes([flags]) + body[9:]
    body += _riff_chunk(b"EXIF", extras.exif) if extras.exif else b""
    body += _riff_chunk(b"XMP ", extras.xmp) if extras.xmp else b""
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
