"""Metadata put into encoded pictures, byte for byte, at the places that each container has for it.

Sources: PNG third edition 11.3; JFIF 1.02; Exif 3.0 section 4.7; XMP part 3; WebP container, RFC 9649; HEIF,
ISO/IEC 23008-12, and ISO/IEC 14496-12 section 8.11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ray_sr.images.exif import EXIF_PREFIX
from ray_sr.images.iptc import photoshop_block
from ray_sr.images.png_header import png_chunk

MAX_JPEG_EXIF = 65533 - 6
MAX_JPEG_XMP = 65533 - 29
MAX_JPEG_IPTC = 65533 - 28

_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Extras:
    """What is put into an encoded picture beside its pixels and profile. density is dots per inch.

    iptc: IIM records. png_colour and png_text: whole chunks. comments: of a JPEG.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    density: tuple[float, float] | None = None
    iptc: bytes | None = None
    png_colour: bytes | None = None
    png_text: bytes | None = None
    comments: tuple[bytes, ...] = ()


def add_to_png(data: bytes, extras: Extras, icc: bytes | None) -> bytes:
    """The PNG with what says its colours, density, texts, EXIF and XMP behind its header, and no other density."""
    added = []
    if extras.png_colour:
        added.append(extras.png_colour)
    elif icc:
        added.append(png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(icc)))
    if extras.density:
        across, down = (min(round(d / 0.0254), 0x7FFFFFFF) for d in extras.density)
        added.append(png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if extras.exif:
        added.append(png_chunk(b"eXIf", extras.exif))
    if extras.xmp:
        added.append(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + extras.xmp))
    if extras.png_text:
        added.append(extras.png_text)
    header_end = 8 + 25
    rest = b"".join(chunk for kind, chunk in _png_parts(data, header_end) if kind != b"pHYs")
    return data[:header_end] + b"".join(added) + rest


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
    """The JPEG (which has no JFIF segment) with JFIF, EXIF, XMP, IPTC and comments as its first segments."""
    unit, across, down = 0, 1, 1
    if extras.density:
        unit, across, down = 1, *(min(max(round(d), 1), 65535) for d in extras.density)
    segments = _jpeg_segment(0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, unit, across, down, 0, 0))
    if extras.exif:
        segments += _jpeg_segment(0xE1, EXIF_PREFIX + extras.exif)
    if extras.xmp:
        segments += _jpeg_segment(0xE1, _XMP_PREFIX + extras.xmp)
    if extras.iptc:
        segments += _jpeg_segment(0xED, photoshop_block(extras.iptc))
    for comment in extras.comments:
        segments += _jpeg_segment(0xFE, comment)
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


def add_to_avif(data: bytes, extras: Extras) -> bytes:
    """The AVIF with EXIF and XMP as further items that describe its picture (ISO/IEC 23008-12, annex A).

    They go to the end of the file; the meta box grows, so the places in it move by as much.
    """
    if not extras.exif and not extras.xmp:
        return data
    parts = {kind: (start, end) for kind, start, end in _iso_boxes(data, 0, len(data))}
    start, end = parts[b"meta"]
    items = [(b"Exif", b"", struct.pack(">I", 0) + extras.exif)] if extras.exif else []
    items += [(b"mime", b"application/rdf+xml\0", extras.xmp)] if extras.xmp else []
    # The growth does not depend on the places, so a first draft tells it.
    growth = len(_described(data, (start, end), items, 0)) - (end - start)
    meta = _described(data, (start, end), items, growth)
    last = _iso_box(b"mdat", b"".join(content for _, _, content in items))
    return data[:start] + meta + data[end:] + last


def _iso_box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _iso_boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each box of a file that was written here."""
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + size
        at += size


def _described(data: bytes, meta: tuple[int, int], items: list[tuple[bytes, bytes, bytes]], growth: int) -> bytes:
    """The meta box with the items in it, all places moved by the growth of the box."""
    start, end = meta
    boxes = {kind: data[first:last] for kind, first, last in _iso_boxes(data, start + 12, end)}
    primary = struct.unpack_from(">H", boxes[b"pitm"], 12)[0]
    taken = struct.unpack_from(">H", boxes[b"iinf"], 12)[0]
    entries, references, places = b"", b"", b""
    position = len(data) + growth + 8
    for number, (kind, content_type, content) in enumerate(items, primary + 1000):
        body = struct.pack(">BBHHH4s", 2, 0, 0, number, 0, kind) + b"\0" + content_type
        entries += _iso_box(b"infe", body)
        references += _iso_box(b"cdsc", struct.pack(">HHH", number, 1, primary))
        places += struct.pack(">HHHHII", number, 0, 0, 1, position, len(content))
        position += len(content)
    iinf = struct.pack(">BBHH", 0, 0, 0, taken + len(items)) + boxes[b"iinf"][14:] + entries
    iref = boxes.get(b"iref", b"\0" * 8 + bytes(4))[8:] + references
    boxes[b"iinf"], boxes[b"iref"] = _iso_box(b"iinf", iinf), _iso_box(b"iref", iref)
    boxes[b"iloc"] = _moved(boxes[b"iloc"], growth, places, len(items))
    return _iso_box(b"meta", bytes(4) + b"".join(boxes.values()))


def _moved(iloc: bytes, growth: int, places: bytes, more: int) -> bytes:
    """The item locations, moved and with further ones, as version 1 with offsets and lengths of four bytes."""
    version, sizes, count = iloc[8], struct.unpack_from(">H", iloc, 12)[0], struct.unpack_from(">H", iloc, 14)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    at, rows = 16, b""

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(iloc[at - size : at], "big")

    for _ in range(count):
        item = number(2)
        method = number(2) if version else 0
        number(2)
        base, extents = number(base_size), number(2)
        rows += struct.pack(">HHHH", item, method, 0, extents)
        for _ in range(extents):
            place, length = base + number(offset_size), number(length_size)
            rows += struct.pack(">II", place + (0 if method else growth), length)
    return _iso_box(b"iloc", struct.pack(">BBHHH", 1, 0, 0, 0x4400, count + more) + rows + places)
