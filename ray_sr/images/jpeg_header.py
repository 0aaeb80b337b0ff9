"""What a JPEG says about itself: size, scans, density, comments, and the pictures behind it.

Sources: ITU-T T.81 annex B; JFIF 1.02; CIPA DC-007 (MPF); ISO 21496-1 and Adobe's hdrgm for gain maps.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ray_sr.images.header import MAX_METADATA_BLOCKS, MAX_TEXT_BYTES, Header, PhotoError
from ray_sr.images.png_header import png_chunk

_SOI, _EOI, _SOS, _APP0, _APP2, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE2, 0xFE
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01, _SOI, _EOI}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_ENTROPY = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_GAIN_MAPS = (b"urn:iso:std:iso:ts:21496", b"http://ns.adobe.com/xap/1.0/\x00")
_MP_ENTRIES = 0xB002
_THUMBNAILS = (0x010001, 0x010002)  # MP types "large thumbnail"


@dataclass
class _Notes:
    """What the walk over the markers has met so far."""

    frame: tuple[int, int, int, int] | None = None
    scans: int = 0
    end: int = 0
    density: tuple[float, float] | None = None
    junk: list[tuple[int, int]] = field(default_factory=list)
    cut: list[tuple[int, int]] = field(default_factory=list)  # the segment in which the file ends
    gain_map: bool = False
    comments: list[bytes] = field(default_factory=list)
    pictures: list[int] | None = None


def scan_jpeg(data: bytes) -> Header:
    """Header of a JPEG file. Raises PhotoError."""
    notes = _Notes()
    for marker, body in _segments(data, notes):
        _note(notes, marker, body)
    if notes.frame is None or not notes.scans:
        raise PhotoError("the file is cut short: the JPEG ends before its pixels")
    depth, height, width, channels = notes.frame
    if depth != 8 or channels not in (1, 3, 4):
        raise PhotoError(f"JPEG with {channels} channels of {depth} bits is not supported", "unsupported-image")
    return Header(
        "jpeg",
        width,
        height,
        channels=channels,
        scans=notes.scans,
        complete=bool(notes.end),
        density=notes.density,
        junk=(*notes.junk, *notes.cut),
        end=notes.end,
        png_text=b"".join(map(_text_chunk, notes.comments))[:MAX_TEXT_BYTES] or None,
        warnings=_warnings(data, notes),
    )


def _warnings(data: bytes, notes: _Notes) -> tuple[str, ...]:
    others = [kind for kind in (notes.pictures or [])[1:] if kind not in _THUMBNAILS]
    trailer = notes.end and notes.pictures is None and data[notes.end :].strip(b"\0\xff\r\n ")
    words = {
        "junk-between-markers": bool(notes.junk),
        "gainmap-dropped": notes.gain_map,
        "other-pictures-dropped": bool(others) and not notes.gain_map,
        "trailer-dropped": bool(trailer) and not notes.gain_map,
    }
    return tuple(word for word, applies in words.items() if applies)


def _segments(data: bytes, notes: _Notes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment up to the end marker; entropy-coded bytes are skipped."""
    position, blocks = 2, 0
    while found := _NEXT_MARKER.search(data, position):
        if data[position : found.start()].strip(b"\xff"):
            notes.junk.append((position, found.start()))
        marker, position = data[found.start() + 1], found.end()
        if marker == _EOI:
            notes.end = position
            return
        if marker in _BARE_MARKERS:
            notes.junk.append((found.start(), position))
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if position + max(length, 2) > len(data) and notes.scans:
            notes.cut = [(found.start(), len(data))]
            return
        yield marker, data[position + 2 : position + length]
        position += max(length, 2)
        blocks += marker != _SOS
        if blocks > MAX_METADATA_BLOCKS or len(notes.junk) > MAX_METADATA_BLOCKS:
            raise PhotoError(f"the JPEG has more than {MAX_METADATA_BLOCKS} header segments")
        if marker == _SOS:
            after = _AFTER_ENTROPY.search(data, position)
            position = after.start() if after else len(data)


def _note(notes: _Notes, marker: int, body: bytes) -> None:
    if marker in _FRAME_MARKERS:
        if notes.frame is not None:
            raise PhotoError("the JPEG has two frame headers")
        notes.frame = struct.unpack_from(">BHHB", body)
    elif marker == _SOS:
        if notes.frame is None:
            raise PhotoError("the JPEG has pixels before its frame header")
        notes.scans += 1
    elif marker == _APP0 and body.startswith(b"JFIF\0"):
        notes.density = _jfif_density(body)
    elif marker == _COM and len(notes.comments) < 64:
        notes.comments.append(body)
    elif marker == _APP2 and body.startswith(b"MPF\0"):
        notes.pictures = _picture_kinds(body[4:])
    elif body.startswith(_GAIN_MAPS):
        notes.gain_map |= body.startswith(_GAIN_MAPS[0]) or b"hdrgm:Version" in body


def _jfif_density(body: bytes) -> tuple[float, float] | None:
    unit, across, down = struct.unpack_from(">BHH", body, 7)
    per_inch = {1: 1.0, 2: 2.54}.get(unit)
    return (across * per_inch, down * per_inch) if per_inch and across and down else None


def _picture_kinds(index: bytes) -> list[int]:
    """MP types of the pictures in a multi-picture index (CIPA DC-007, section 5.2.3); none where it is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(index[:4], "")
    try:
        first = struct.unpack_from(order + "I", index, 4)[0] if order else len(index)
        for at in range(first + 2, first + 2 + 12 * struct.unpack_from(order + "H", index, first)[0], 12):
            tag, _, count, place = struct.unpack_from(order + "HHII", index, at)
            if tag == _MP_ENTRIES:
                entries = range(place, min(place + count, len(index)) - 15, 16)
                return [struct.unpack_from(order + "I", index, entry)[0] & 0xFFFFFF for entry in entries]
    except struct.error:
        pass
    return []


def _text_chunk(comment: bytes) -> bytes:
    """The comment as the PNG chunk that says the same."""
    text = comment.rstrip(b"\0")
    try:
        return png_chunk(b"iTXt", b"Comment\0\0\0\0\0" + text.decode("utf-8").encode()) if text else b""
    except UnicodeDecodeError:
        return png_chunk(b"tEXt", b"Comment\0" + text.replace(b"\0", b" "))
