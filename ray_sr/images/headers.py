"""What a picture file says about itself, read in pure Python before any C decoder touches its bytes.

Sizes, frame counts and checksums are taken from the container alone, so bombs, animations and cut files
are refused for the price of a walk over the headers. Here are WebP (container, RFC 9649) and TIFF (6.0 sections
2 and 8, BigTIFF for 64 bits); the other formats have modules of their own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from ray_sr.images.header import MAX_ICC_BYTES, MAX_METADATA_BLOCKS, Header, PhotoError
from ray_sr.images.heif_header import brands, scan_heif
from ray_sr.images.jpeg_header import scan_jpeg
from ray_sr.images.jxl_header import scan_jxl
from ray_sr.images.png_header import scan_png

__all__ = ["MAX_ICC_BYTES", "MAX_METADATA_BLOCKS", "Header", "PhotoError", "scan_header", "sniff"]

_MAGIC = (
    ("png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("jpeg", re.compile(rb"\xff\xd8\xff")),
    ("webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("tiff", re.compile(rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]")),
    ("gif", re.compile(rb"GIF8[79]a")),
    ("bmp", re.compile(rb"BM....\x00\x00\x00\x00", re.DOTALL)),
    ("jxl", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n")),
    ("jp2", re.compile(rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("psd", re.compile(rb"8BPS")),
    ("pdf", re.compile(rb"%PDF-")),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"mif1", b"mif2", b"msf1"}


def sniff(data: bytes) -> str | None:
    """Name of the picture format that the first bytes announce, accepted or not; None where unknown."""
    if announced := set(brands(data)):
        return "avif" if announced & _AVIF_BRANDS else "heif" if announced & _HEIF_BRANDS else None
    return next((name for name, magic in _MAGIC if magic.match(data)), None)


def scan_header(data: bytes) -> Header:
    """Header of a picture file. Raises PhotoError where it is damaged or of a kind that is not read."""
    scanners = {
        "png": scan_png,
        "jpeg": scan_jpeg,
        "webp": _scan_webp,
        "tiff": _scan_tiff,
        "avif": scan_heif,
        "heif": scan_heif,
        "jxl": scan_jxl,
    }
    kind = sniff(data)
    if kind not in scanners:
        raise PhotoError("not a picture of a format that is read here", "unsupported-media-type")
    try:
        header = scanners[kind](data)
    except (struct.error, OverflowError, IndexError):
        raise PhotoError(f"the {kind} header is cut short") from None
    if header.width < 1 or header.height < 1:
        raise PhotoError(f"the {kind} header gives the size {header.width}x{header.height}")
    return header


# WebP -----------------------------------------------------------------------------------------------------


def _scan_webp(data: bytes) -> Header:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    size, frames, has_pixels = None, 0, False
    for kind, body in _riff_chunks(data, min(end, len(data))):
        size = size or _webp_size(kind, body)
        frames += kind == b"ANMF"
        has_pixels |= kind in (b"VP8 ", b"VP8L", b"ANMF")
    if size is None or not has_pixels:
        raise PhotoError("the file is cut short: the WebP ends before its pixels")
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
_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}
_NEW_SUBFILE, _WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES = 254, 256, 257, 258, 274, 277
_PHOTOMETRIC, _EXTRA_SAMPLES = 262, 338
_IPTC, _ICC = 33723, 34675
_TRANSFER_FUNCTION, _WHITE, _PRIMARIES = 301, 318, 319
_SRGB_POINTS = {_WHITE: (0.3127, 0.3290), _PRIMARIES: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)}
_PLAIN = (0, 1, 2)  # gray, and RGB: beyond their colours is opacity or something else
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
        extra=tuple(page.get(_EXTRA_SAMPLES, [])) if page.get(_PHOTOMETRIC, [1])[0] in _PLAIN else None,
        iptc=_tiff_iptc(data, page),
        warnings=(("exif-dropped",) if _EXIF_IFD in page else ()) + _tiff_colours(page),
    )


def _tiff_colours(page: dict[int, list[int]]) -> tuple[str, ...]:
    """What is said of colours in tags of TIFF's own (TIFF 6.0, section 20), which a profile would say better."""
    if _ICC in page:
        return ()
    words = ("transfer-function-dropped",) if _TRANSFER_FUNCTION in page else ()
    for tag, known in _SRGB_POINTS.items():
        values = page.get(tag, [])
        points = [top / max(1, bottom) for top, bottom in zip(values[::2], values[1::2], strict=False)]
        # Some programs write sRGB's with every picture.
        if points and (len(points) != len(known) or max(map(abs, map(float.__sub__, points, known))) > 0.002):
            return (*words, "chromaticities-dropped")
    return words


def _tiff_density(page: dict[int, list[int]]) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(page.get(_RESOLUTION_UNIT, [2])[0])
    across, down = (page.get(tag, [0, 0]) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    if per_inch is None or len(across) != 2 or len(down) != 2 or not all(across + down):
        return None
    return per_inch * across[0] / across[1], per_inch * down[0] / down[1]


def _tiff_iptc(data: bytes, page: dict[int, list[int]]) -> bytes | None:
    """IPTC records, whether their bytes are counted as such or in fours."""
    start, size = page.get(_IPTC, [0, 0])
    return data[start : start + size] or None


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
        value_at, size = at + struct.calcsize(entry), length * _TIFF_SIZES.get(kind, 0)
        if size > inline:
            value_at = struct.unpack_from(pointer, data, value_at)[0]
        if tag in (_IPTC, _ICC) and size:
            tags[tag] = [value_at, size]
        elif kind in _TIFF_TYPES and length:
            values = struct.unpack_from(order + min(length, 16) * _TIFF_TYPES[kind], data, value_at)
            tags[tag] = list(values)
        at += struct.calcsize(entry) + inline
    return tags, struct.unpack_from(pointer, data, at)[0]
