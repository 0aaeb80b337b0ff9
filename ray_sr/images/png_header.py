"""What a PNG says about itself: size, colours, texts, EXIF, and whether its chunks are whole.

Source: PNG third edition (W3C, 2025), sections 5 and 11. `Raw profile type …` is how ImageMagick and older
ExifTool put EXIF, XMP and IPTC into text chunks: a name, a length and hexadecimal digits.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ray_sr.images.colour import GAMMA_OF_SRGB, HDR_TRANSFERS, Colours, colours_of_codes, profile_of
from ray_sr.images.header import MAX_ICC_BYTES, MAX_METADATA_BLOCKS, MAX_TEXT_BYTES, Header, PhotoError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_GRAY_TYPES = (0, 4)
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_COLOURS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
# A wrong checksum in one of these may change what is seen.
_SEEN = {b"tRNS", b"iCCP", b"sBIT", b"acTL", b"fcTL", b"fdAT", *_COLOURS}
_RAW_PROFILE = b"Raw profile type "
_XMP = b"XML:com.adobe.xmp"
_MOST_UNPACKED = 4 * MAX_TEXT_BYTES  # of all texts and profiles in texts, kept or not: bombs are small as stored
_XMP_IN_APP1 = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass
class _Notes:
    """What the walk over the chunks has met so far."""

    seen: set[bytes] = field(default_factory=set)
    metadata_blocks: int = 0
    bad_crc: bool = False
    frames: int = 1
    density: tuple[float, float] | None = None
    icc: bytes | None = None
    colour: dict[bytes, bytes] = field(default_factory=dict)
    exif: bytes | None = None
    profiles: dict[bytes, bytes] = field(default_factory=dict)
    text: bytes = b""
    text_bytes: int = 0
    unpacked_bytes: int = 0
    junk: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def unpacked(self, kind: bytes, body: bytes) -> bytes | None:
        """The text in a chunk; None for a bomb, and for all texts once a file has cost enough unpacking."""
        if self.unpacked_bytes > _MOST_UNPACKED:
            return None
        content = text_content(kind, body)
        self.unpacked_bytes += MAX_TEXT_BYTES if content is None else len(content)
        return content

    def keep_text(self, count: int) -> bool:
        """Whether `count` more unpacked bytes of text still fit."""
        fits = self.text_bytes + count <= MAX_TEXT_BYTES
        self.text_bytes += count if fits else 0
        return fits


def scan_png(data: bytes) -> Header:
    """Header of a PNG file. Raises PhotoError."""
    header = _ihdr(data)
    notes = _Notes()
    for kind, start, end in png_chunks(data):
        _note(notes, data, kind, start, end)
    if b"IDAT" not in notes.seen:
        raise PhotoError("the file is cut short: the PNG ends before its pixels")
    if data[25] == 3 and b"PLTE" not in notes.seen:
        raise PhotoError("the PNG needs a palette and has none")
    colours = _colours(notes, 1 if data[25] in _GRAY_TYPES else 3)
    profiles = notes.profiles
    if (app1 := profiles.pop(b"APP1", b"")).startswith(_XMP_IN_APP1):
        profiles.setdefault(b"xmp", app1.removeprefix(_XMP_IN_APP1))
    elif app1:
        profiles.setdefault(b"exif", app1)
    return replace(
        header,
        frames=notes.frames,
        complete=b"IEND" in notes.seen,
        density=notes.density,
        problems=("bad-crc",) if notes.bad_crc else (),
        junk=tuple(notes.junk),
        exif=notes.exif or profiles.get(b"exif"),
        xmp=profiles.get(_XMP) or profiles.get(b"xmp"),
        iptc=profiles.get(b"iptc") or profiles.get(b"8bim"),
        png_text=notes.text or None,
        warnings=tuple(dict.fromkeys(notes.warnings)) + colours[2],
        icc=colours[0],
        png_colour=colours[1],
    )


def _ihdr(data: bytes) -> Header:
    length, kind = struct.unpack_from(">I4s", data, 8)
    if kind != b"IHDR" or length != 13:
        raise PhotoError("the PNG does not begin with its header chunk")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise PhotoError(f"the PNG header is invalid (bit depth {depth}, colour type {colour})")
    if max(width, height) > 0x7FFFFFFF:
        raise PhotoError(f"the PNG header gives the size {width}x{height}")
    return Header("png", width, height, depth=depth, channels=_CHANNELS[colour])


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk, until IEND or the end of the bytes; the last one may be cut.

    Behind pixels, what is no chunk is the end too: room kept for a download that was broken off.
    """
    position, has_pixels = len(SIGNATURE), False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            if has_pixels:
                return
            raise PhotoError("the PNG has a chunk with an invalid name")
        end = position + 12 + length
        yield kind, position, end
        has_pixels |= kind == b"IDAT"
        if kind == b"IEND" or end > len(data):
            return
        position = end


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """The chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _note(notes: _Notes, data: bytes, kind: bytes, start: int, end: int) -> None:
    critical = kind[:1].isupper()
    if end > len(data):
        if kind == b"IDAT" and start + 8 < len(data):
            notes.seen.add(kind)
        return
    if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
        _note_bad_crc(notes, kind, start, end)
    notes.seen.add(kind)
    notes.metadata_blocks += not critical
    if notes.metadata_blocks > MAX_METADATA_BLOCKS:
        raise PhotoError(f"the PNG has more than {MAX_METADATA_BLOCKS} metadata chunks")
    if critical:
        return
    body = data[start + 8 : end - 4]
    if kind == b"acTL":
        notes.frames = max(1, struct.unpack_from(">I", body)[0])
    elif kind == b"pHYs":
        notes.density = _density(body)
    elif kind == b"iCCP":
        notes.icc = _profile(body)
    elif kind == b"eXIf":
        notes.exif = body or None
    elif kind in _COLOURS:
        notes.colour.setdefault(kind, body)
    elif kind in _TEXTS:
        _note_text(notes, kind, body)


def _note_bad_crc(notes: _Notes, kind: bytes, start: int, end: int) -> None:
    if kind[:1].isupper() and kind != b"IDAT":
        raise PhotoError(f"the PNG chunk {kind.decode()} has a wrong checksum")
    if kind == b"IDAT" or kind in _SEEN:
        notes.bad_crc = True
    else:
        notes.junk.append((start, end))
        notes.warnings.append("bad-crc-of-metadata")


def _density(body: bytes) -> tuple[float, float] | None:
    across, down, unit = struct.unpack_from(">IIB", body)
    return (across * 0.0254, down * 0.0254) if unit == 1 and across and down else None


def _profile(body: bytes) -> bytes:
    """The profile behind its name and method byte; b"" where it is damaged or unpacks to too much."""
    return _inflated(body.partition(b"\0")[2][1:], MAX_ICC_BYTES) or b""


def _inflated(packed: bytes, most: int) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, most)
    except zlib.error:
        return None
    return content if unpacker.eof else None


# Texts ----------------------------------------------------------------------------------------------------


def _note_text(notes: _Notes, kind: bytes, body: bytes) -> None:
    """Takes out what is not a text but EXIF, XMP or IPTC in disguise; keeps the rest as chunks."""
    keyword = body.partition(b"\0")[0]
    if keyword == _XMP or keyword.startswith(_RAW_PROFILE):
        content = notes.unpacked(kind, body)
        if content is None:
            notes.warnings.append("text-dropped")
        elif keyword == _XMP:
            notes.profiles.setdefault(_XMP, content)
        elif (raw := _raw_profile(content)) is not None:
            notes.profiles.setdefault(keyword.removeprefix(_RAW_PROFILE), raw)
    elif (content := notes.unpacked(kind, body)) is None or not notes.keep_text(len(keyword) + len(content)):
        notes.warnings.append("text-dropped")
    else:
        notes.text += png_chunk(kind, body)


def text_content(kind: bytes, body: bytes) -> bytes | None:
    """The text behind the keyword, as its bytes; None where it cannot be unpacked."""
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflated(rest[1:], MAX_TEXT_BYTES)
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        return None
    return _inflated(parts[2], MAX_TEXT_BYTES) if rest[:1] == b"\1" else parts[2]


def _raw_profile(content: bytes) -> bytes | None:
    """The bytes in hexadecimal digits behind a name and a length."""
    found = re.match(rb"\s*\S+\s+(\d{1,9})\s+([0-9A-Fa-f\s]*)$", content)
    if found is None:
        return None
    digits = b"".join(found[2].split())
    raw = bytes.fromhex(digits.decode()) if len(digits) % 2 == 0 else b""
    return raw if len(raw) == int(found[1]) else None


# Colours --------------------------------------------------------------------------------------------------


def _colours(notes: _Notes, channels: int) -> tuple[bytes | None, bytes | None, tuple[str, ...]]:
    """The ICC profile, the chunks which say the same where the file has no profile, and warnings.

    What counts, in this order: cICP, iCCP, sRGB, gAMA with cHRM (section 13.12); cHRM alone says nothing.
    """
    stated = notes.colour
    codes = stated.get(b"cICP", b"")
    warnings: tuple[str, ...] = ()
    if len(codes) == 4 and codes[1] in HDR_TRANSFERS:
        raise PhotoError("HDR pictures (PQ or HLG) are not supported; convert to SDR first", "unsupported-image")
    if codes:
        named = colours_of_codes(codes[0], codes[1]) if len(codes) == 4 and not codes[2] else None
        if named is not None:
            narrow = () if codes[3] else ("narrow-range-ignored",)
            icc = None if named.is_srgb else profile_of(named, channels)
            return icc, png_chunk(b"cICP", codes), narrow
        warnings = ("cicp-dropped",)
    if notes.icc is not None:
        return notes.icc, None, warnings
    chunks = b"".join(png_chunk(kind, stated[kind]) for kind in (b"sRGB", b"gAMA", b"cHRM") if kind in stated)
    if b"sRGB" in stated or b"gAMA" not in stated:
        return None, chunks or None, warnings
    measured = _measured(stated[b"gAMA"], stated.get(b"cHRM"))
    icc = profile_of(measured, channels) if measured else None
    if icc is None:
        return None, None, (*warnings, "gamma-dropped")
    return (None if measured is None or measured.is_srgb else icc), chunks, warnings


def _measured(gamma: bytes, points: bytes | None) -> Colours | None:
    """Colours by gAMA and cHRM; None for values that make no sense."""
    exponent = struct.unpack_from(">I", gamma)[0] / 100000
    if not 0.1 <= exponent <= 10:
        return None
    if points is None:
        alone = Colours()
        return alone if abs(exponent - GAMMA_OF_SRGB) < 0.005 else replace(alone, curve=(1 / exponent,))
    white_x, white_y, *primaries = (value / 100000 for value in struct.unpack_from(">8I", points))
    return Colours((*primaries, white_x, white_y), (1 / exponent,))
