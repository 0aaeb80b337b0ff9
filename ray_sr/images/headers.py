"""What a picture file says about itself, read in pure Python before any C decoder touches its bytes.

Sizes, frame counts and checksums are taken from the container alone, so bombs, animations and cut files
are refused for the price of a walk over the headers. Sources: PNG third edition (W3C, 2025) sections 5 and
11; JPEG, ITU-T T.81 annex B; WebP container, RFC 9649; TIFF 6.0 sections 2 and 8, BigTIFF for 64 bits.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ray_sr.errors import InputError

MAX_METADATA_BLOCKS = 4096
MAX_ICC_BYTES = 4 << 20

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAGIC = (
    ("png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("jpeg", re.compile(rb"\xff\xd8\xff")),
    ("webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("tiff", re.compile(rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]")),
    ("gif", re.compile(rb"GIF8[79]a")),
    ("bmp", re.compile(rb"BM....\x00\x00\x00\x00", re.DOTALL)),
    ("avif", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
    ("heif", re.compile(rb"....ftyp(?:hei[cmsx]|hev[cmx]|mif1|msf1)", re.DOTALL)),
    ("jxl", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n")),
    ("jp2", re.compile(rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("psd", re.compile(rb"8BPS")),
    ("pdf", re.compile(rb"%PDF-")),
)


class PhotoError(InputError):
    """A picture that is damaged, too large, or of a kind that is not accepted.

    `reason` is one of image-corrupt, image-too-large, payload-too-large, animated-image,
    unsupported-image, unsupported-media-type, format-limit.
    """

    def __init__(self, message: str, reason: str = "image-corrupt") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What the container promises; nothing in it has been checked against the pixels.

    width and height are as stored, before any turn. `depth` is bits per sample, `channels` counts stored
    samples (palettes: 1; 0 where only the pixels tell), `density` is dots per inch across and down.
    `complete` is False where the end of the file is missing. `problems` names faults that do not touch
    pixels, `warnings` what is lost by decoding. `orientation` and `page`, the first that is not a thumbnail
    or a mask, are filled for TIFF only; other formats keep the orientation in EXIF. `icc` is filled for PNG
    only, whose decoder hides profiles it dislikes: b"" where it cannot be unpacked.
    """

    format: str
    width: int
    height: int
    depth: int = 8
    channels: int = 0
    frames: int = 1
    scans: int = 1
    complete: bool = True
    density: tuple[float, float] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    orientation: int = 1
    page: int = 0
    icc: bytes | None = None


def sniff(data: bytes) -> str | None:
    """Name of the picture format that the first bytes announce, accepted or not; None where unknown."""
    return next((name for name, magic in _MAGIC if magic.match(data)), None)


def scan_header(data: bytes) -> Header:
    """Header of a PNG, JPEG, WebP or TIFF file. Raises PhotoError where it is damaged or of another kind."""
    scanners = {"png": _scan_png, "jpeg": _scan_jpeg, "webp": _scan_webp, "tiff": _scan_tiff}
    kind = sniff(data)
    if kind not in scanners:
        raise PhotoError("not a PNG, JPEG, WebP or TIFF picture", "unsupported-media-type")
    try:
        header = scanners[kind](data)
    except (struct.error, OverflowError):
        raise PhotoError(f"the {kind} header is cut short") from None
    if header.width < 1 or header.height < 1:
        raise PhotoError(f"the {kind} header gives the size {header.width}x{header.height}")
    return header


# PNG ------------------------------------------------------------------------------------------------------

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_SRGB_GAMMA = 45455
_HDR_TRANSFERS = (16, 18)  # PQ and HLG, ITU-T H.273 table 3


@dataclass
class _PngNotes:
    """What the walk over the chunks has met so far."""

    seen: set[bytes] = field(default_factory=set)
    metadata_blocks: int = 0
    bad_crc: bool = False
    frames: int = 1
    gamma: int = _SRGB_GAMMA
    density: tuple[float, float] | None = None
    icc: bytes | None = None


def _scan_png(data: bytes) -> Header:
    header = _png_ihdr(data)
    notes = _PngNotes()
    for kind, body, crc_ok in _png_chunks(data):
        _note_png_chunk(notes, kind, body, crc_ok)
    if b"IDAT" not in notes.seen:
        raise PhotoError("the PNG ends before its pixels")
    if data[25] == 3 and b"PLTE" not in notes.seen:
        raise PhotoError("the PNG needs a palette and has none")
    return replace(
        header,
        frames=notes.frames,
        complete=b"IEND" in notes.seen,
        density=notes.density,
        icc=notes.icc,
        problems=("bad-crc",) if notes.bad_crc else (),
        warnings=("gamma-dropped",) if _gamma_matters(notes) else (),
    )


def _png_ihdr(data: bytes) -> Header:
    length, kind = struct.unpack_from(">I4s", data, 8)
    if kind != b"IHDR" or length != 13:
        raise PhotoError("the PNG does not begin with its header chunk")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise PhotoError(f"the PNG header is invalid (bit depth {depth}, colour type {colour})")
    if max(width, height) > 0x7FFFFFFF:
        raise PhotoError(f"the PNG header gives the size {width}x{height}")
    return Header("png", width, height, depth=depth, channels=_PNG_CHANNELS[colour])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Kind, body and checksum result of each chunk, until IEND or the end of the bytes."""
    view, position = memoryview(data), len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind.isalpha():
            raise PhotoError("the PNG has a chunk with an invalid name")
        if end > len(data):
            return
        stored = struct.unpack_from(">I", data, end - 4)[0]
        yield kind, view[position + 8 : end - 4], zlib.crc32(view[position + 4 : end - 4]) == stored
        if kind == b"IEND":
            return
        position = end


def _note_png_chunk(notes: _PngNotes, kind: bytes, body: memoryview, crc_ok: bool) -> None:
    critical = kind[:1].isupper()
    if not crc_ok and critical:
        raise PhotoError(f"the PNG chunk {kind.decode()} has a wrong checksum")
    notes.bad_crc |= not crc_ok
    notes.seen.add(kind)
    notes.metadata_blocks += not critical
    if notes.metadata_blocks > MAX_METADATA_BLOCKS:
        raise PhotoError(f"the PNG has more than {MAX_METADATA_BLOCKS} metadata chunks")
    if kind == b"acTL":
        notes.frames = max(1, struct.unpack_from(">I", body)[0])
    elif kind == b"gAMA":
        notes.gamma = struct.unpack_from(">I", body)[0]
    elif kind == b"pHYs":
        notes.density = _png_density(body)
    elif kind == b"iCCP":
        notes.icc = _png_profile(body)
    elif kind == b"cICP" and body[1:2] and body[1] in _HDR_TRANSFERS:
        raise PhotoError("HDR pictures (PQ or HLG) are not supported; convert to SDR first", "unsupported-image")


def _png_density(body: memoryview) -> tuple[float, float] | None:
    across, down, unit = struct.unpack_from(">IIB", body)
    return (across * 0.0254, down * 0.0254) if unit == 1 and across and down else None


def _png_profile(body: memoryview) -> bytes:
    """The profile behind its name and method byte; b"" where it is damaged or unpacks to too much."""
    packed = bytes(body).partition(b"\0")[2][1:]
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_ICC_BYTES)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


def _gamma_matters(notes: _PngNotes) -> bool:
    """Whether a viewer would have used gAMA, and it is not sRGB's."""
    overruled = notes.seen & {b"iCCP", b"sRGB", b"cICP"}
    return not overruled and abs(notes.gamma - _SRGB_GAMMA) > 500


# JPEG -----------------------------------------------------------------------------------------------------

_SOI, _EOI, _SOS, _APP0 = 0xD8, 0xD9, 0xDA, 0xE0
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01, _SOI, _EOI}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_ENTROPY = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_GAIN_MAPS = (b"urn:iso:std:iso:ts:21496", b"http://ns.adobe.com/xap/1.0/\x00")


@dataclass
class _JpegNotes:
    """What the walk over the markers has met so far."""

    frame: tuple[int, int, int, int] | None = None
    scans: int = 0
    complete: bool = False
    density: tuple[float, float] | None = None
    junk: bool = False
    gain_map: bool = False


def _scan_jpeg(data: bytes) -> Header:
    notes = _JpegNotes()
    for marker, body in _jpeg_segments(data, notes):
        _note_jpeg_segment(notes, marker, body)
    if notes.frame is None or not notes.scans:
        raise PhotoError("the JPEG ends before its pixels")
    depth, height, width, channels = notes.frame
    if depth != 8 or channels not in (1, 3, 4):
        raise PhotoError(f"JPEG with {channels} channels of {depth} bits is not supported", "unsupported-image")
    return Header(
        "jpeg",
        width,
        height,
        channels=channels,
        scans=notes.scans,
        complete=notes.complete,
        density=notes.density,
        problems=("junk-between-markers",) if notes.junk else (),
        warnings=("gainmap-dropped",) if notes.gain_map else (),
    )


def _jpeg_segments(data: bytes, notes: _JpegNotes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment up to the end marker; entropy-coded bytes are skipped."""
    position, blocks = 2, 0
    while found := _NEXT_MARKER.search(data, position):
        notes.junk |= bool(data[position : found.start()].strip(b"\xff"))
        marker, position = data[found.start() + 1], found.end()
        if marker == _EOI:
            notes.complete = True
            return
        if marker in _BARE_MARKERS:
            notes.junk = True
            continue
        length = struct.unpack_from(">H", data, position)[0]
        yield marker, data[position + 2 : position + length]
        position += max(length, 2)
        blocks += marker != _SOS
        if blocks > MAX_METADATA_BLOCKS:
            raise PhotoError(f"the JPEG has more than {MAX_METADATA_BLOCKS} header segments")
        if marker == _SOS:
            after = _AFTER_ENTROPY.search(data, position)
            position = after.start() if after else len(data)


def _note_jpeg_segment(notes: _JpegNotes, marker: int, body: bytes) -> None:
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
    elif body.startswith(_GAIN_MAPS):
        notes.gain_map |= body.startswith(_GAIN_MAPS[0]) or b"hdrgm:Version" in body


def _jfif_density(body: bytes) -> tuple[float, float] | None:
    unit, across, down = struct.unpack_from(">BHH", body, 7)
    per_inch = {1: 1.0, 2: 2.54}.get(unit)
    return (across * per_inch, down * per_inch) if per_inch and across and down else None


# WebP -----------------------------------------------------------------------------------------------------


def _scan_webp(data: bytes) -> Header:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    size, frames, has_pixels = None, 0, False
    for kind, body in _riff_chunks(data, min(end, len(data))):
        size = size or _webp_size(kind, body)
        frames += kind == b"ANMF"
        has_pixels |= kind in (b"VP8 ", b"VP8L", b"ANMF")
    if size is None or not has_pixels:
        raise PhotoError("the WebP ends before its pixels")
    return Header("webp", *size, frames=max(1, frames), complete=end <= len(data))


def _riff_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each RIFF chunk; the body of a cut one is what there is of it."""
    view, position, count = memoryview(data), 12, 0
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, view[position + 8 : min(position + 8 + length, end)]
        position += 8 + length + length % 2
        count += 1
        if count > MAX_METADATA_BLOCKS:
            raise PhotoError(f"the WebP has more than {MAX_METADATA_BLOCKS} chunks")


def _webp_size(kind: bytes, body: memoryview) -> tuple[int, int] | None:
    if kind == b"VP8X":
        low, high, height, above = struct.unpack_from("<HBHB", body, 4)
        return 1 + low + (high << 16), 1 + height + (above << 16)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", body)
        if signature != 0x2F:
            raise PhotoError("the lossless WebP frame has no signature")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", body, 3)
        if start != b"\x9d\x01\x2a":
            raise PhotoError("the lossy WebP frame has no start code")
        return width & 0x3FFF, height & 0x3FFF
    return None


# TIFF -----------------------------------------------------------------------------------------------------

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 16: "Q"}
_NEW_SUBFILE, _WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES = 254, 256, 257, 258, 274, 277
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_SAMPLE_FORMAT, _EXIF_IFD = 339, 34665
_REDUCED_OR_MASK = 0b101


def _scan_tiff(data: bytes) -> Header:
    pages = _tiff_pages(data)
    whole = [i for i, page in enumerate(pages) if not page.get(_NEW_SUBFILE, [0])[0] & _REDUCED_OR_MASK]
    if not whole:
        raise PhotoError("the TIFF has no page")
    page = pages[whole[0]]
    depth, samples = page.get(_BITS, [1])[0], page.get(_SAMPLES, [1])[0]
    if page.get(_SAMPLE_FORMAT, [1])[0] != 1 or depth not in (1, 2, 4, 8, 16):
        raise PhotoError(f"TIFF samples of {depth} bits must be unsigned integers", "unsupported-image")
    return Header(
        "tiff",
        page.get(_WIDTH, [0])[0],
        page.get(_HEIGHT, [0])[0],
        depth=depth,
        channels=samples,
        frames=len(whole),
        page=whole[0],
        density=_tiff_density(page),
        orientation=page.get(_ORIENTATION, [1])[0],
        warnings=("exif-dropped",) if _EXIF_IFD in page else (),
    )


def _tiff_density(page: dict[int, list[int]]) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(page.get(_RESOLUTION_UNIT, [2])[0])
    across, down = (page.get(tag, [0, 0]) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    if per_inch is None or len(across) != 2 or len(down) != 2 or not all(across + down):
        return None
    return per_inch * across[0] / across[1], per_inch * down[0] / down[1]


def _tiff_pages(data: bytes) -> list[dict[int, list[int]]]:
    """Tags of each page of the chain that starts at the header."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"\x2b\x00", b"\x00\x2b")
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    pages: list[dict[int, list[int]]] = []
    visited: set[int] = set()
    while offset:
        if offset in visited or len(visited) > MAX_METADATA_BLOCKS:
            raise PhotoError("the pages of the TIFF form a loop")
        visited.add(offset)
        page, offset = _tiff_page(data, order, big, offset)
        pages.append(page)
    return pages


def _tiff_page(data: bytes, order: str, big: bool, offset: int) -> tuple[dict[int, list[int]], int]:
    """Tags of the page at `offset`, the first 16 values of each, and the offset of the next page.

    Holds unsigned integers; a rational is two of them.
    """
    counter, entry, pointer = (order + c for c in (("Q", "HHQ", "Q") if big else ("H", "HHI", "I")))
    count = struct.unpack_from(counter, data, offset)[0]
    if count > MAX_METADATA_BLOCKS:
        raise PhotoError(f"the TIFF page has more than {MAX_METADATA_BLOCKS} tags")
    at, inline = offset + struct.calcsize(counter), struct.calcsize(pointer)
    tags: dict[int, list[int]] = {}
    for _ in range(count):
        tag, kind, length = struct.unpack_from(entry, data, at)
        value_at = at + struct.calcsize(entry)
        if kind in _TIFF_TYPES and length:
            if length * struct.calcsize("=" + _TIFF_TYPES[kind]) > inline:
                value_at = struct.unpack_from(pointer, data, value_at)[0]
            values = struct.unpack_from(order + min(length, 16) * _TIFF_TYPES[kind], data, value_at)
            tags[tag] = list(values)
        at += struct.calcsize(entry) + inline
    return tags, struct.unpack_from(pointer, data, at)[0]
