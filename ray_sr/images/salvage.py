"""What there is of cut and damaged JPEG and PNG files, and how far it goes."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import replace

import numpy as np

from ray_sr.images.header import Header, PhotoError
from ray_sr.images.loaders import Loaded, load_pixels
from ray_sr.images.png_header import SIGNATURE, png_chunk, png_chunks

_EOI = b"\xff\xd9"
_FILLER_BYTES = (4096, 8)  # of codes that mean nothing to a table, libvips bears a hundred
_PIECE = 4096
_PADDING = 512  # bytes of zeros or ones at a file's end that are taken for room kept for a download
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def without_junk(data: bytes, header: Header) -> tuple[bytes, Header]:
    """The bytes without the spans that the header found to belong to nothing, and the header of what is left."""
    if not header.junk:
        return data, header
    edges = [0, *(at for span in header.junk for at in span), len(data)]
    kept = b"".join(data[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    end = header.end and header.end - (len(data) - len(kept))
    return kept, replace(header, junk=(), end=end)


def has_junk_before_end(data: bytes, header: Header, loaded: Loaded) -> bool:
    """Whether a JPEG, which gave `loaded`, has bytes between its pixels and its end mark.

    Codes are filled up with ones, so only where the last bit is none are others tried in the place of the last
    byte: if they all give the same pixels, it was not needed.
    """
    end = header.end - len(_EOI)
    if not header.end or header.scans > 1 or data[end - 1] & 1:
        return False
    for other in (data[end - 1] ^ 0x80, 0x55, 0xAA, 0x00):
        tried = data[: end - 1] + bytes([other]) + _EOI
        if not np.array_equal(load_pixels(tried, header, "none").pixels, loaded.pixels):
            return False
    return True


def salvage(data: bytes, header: Header) -> Loaded:
    """The picture as far as it can be read, with a warning that says how far. Raises PhotoError."""
    return _salvage_jpeg(data, header) if header.format == "jpeg" else _salvage_png(data, header)


def _salvage_jpeg(data: bytes, header: Header) -> Loaded:
    """Where two different continuations give different pixels, the file itself says nothing."""
    body = data[: header.end - len(_EOI)] if header.end else _without_padding(data, header)
    body = body[:-1] if body.endswith(b"\xff") else body
    found, differs = _two_continuations(body, header)
    block = _rows_of_a_block(data)
    # Colour that is stored coarsely is spread over the row above the block.
    whole = header.height if not len(differs) else (int(differs[0]) + 1) // block * block
    if not whole and header.scans == 1:
        raise PhotoError("the file is cut short: nothing of its pixels is left")
    missing = () if header.end else ("end-missing",)
    what = "missing" if header.scans == 1 else "coarse"
    word = () if whole == header.height else (f"{what}-below-row-{whole}-of-{header.height}",)
    return replace(found, warnings=found.warnings + (word or missing or ("damaged",)))


def _two_continuations(body: bytes, header: Header) -> tuple[Loaded, np.ndarray]:
    """The picture of a body that is ended right away, and the rows that further bytes would have changed."""
    found, other = load_pixels(body + _EOI, header, "none"), None
    for count in _FILLER_BYTES:
        filler = np.random.default_rng(0).integers(0, 255, count, np.uint8).tobytes()  # never 255: no marker
        with contextlib.suppress(PhotoError):
            other = load_pixels(body + filler + _EOI, header, "none")
            break
    if other is None:
        raise PhotoError("the JPEG is damaged: none of its pixels can be trusted")
    return found, np.flatnonzero((found.pixels != other.pixels).any(axis=(1, 2)))


def _without_padding(data: bytes, header: Header) -> bytes:
    """The bytes before the zeros or ones that fill a file whose download was broken off.

    Even regions are stored as zeros too: where the picture needs the last of them, and no more, they are its own.
    """
    written = data.rstrip(b"\0\xff")
    if len(data) - len(written) < _PADDING:
        return data
    ones_gone = data.rstrip(b"\xff")
    if not len(_two_continuations(ones_gone, header)[1]) and len(_two_continuations(ones_gone[:-2], header)[1]):
        return ones_gone
    return written


def _rows_of_a_block(data: bytes) -> int:
    """Rows of a row of blocks: 8 times the largest vertical sampling factor (T.81, section A.2)."""
    at = 2
    while at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            factors = data[at + 11 : at + 2 + length : 3]
            return 8 * max([factor & 15 for factor in factors] or [1]) or 8
        at += 2 + length
    return 8


def _salvage_png(data: bytes, header: Header) -> Loaded:
    """A PNG of the rows that can be unpacked, and zeros below them."""
    bits = header.depth * _CHANNELS[data[25]]
    lines = _line_lengths(header.width, header.height, bits, bool(data[28]))
    total = sum(lines)
    kept, rows = b"", _unpacked(data, total)
    for kind, start, end in png_chunks(data):
        if kind in (b"IHDR", b"PLTE", b"tRNS") and end <= len(data):
            kept += data[start:end]
    whole = len(rows) // lines[0] if not data[28] else 0
    if not rows or (not data[28] and not whole):
        raise PhotoError("the file is cut short: nothing of its pixels is left")
    body = png_chunk(b"IDAT", zlib.compress(rows.ljust(total, b"\0"), 1))
    found = load_pixels(SIGNATURE + kept + body + png_chunk(b"IEND", b""), header, "error")
    if len(rows) == total:
        word = "damaged" if header.complete else "end-missing"
    elif data[28]:
        word = "coarse"
    else:
        word = f"missing-below-row-{whole}-of-{header.height}"
    return replace(found, warnings=(*found.warnings, word))


def _line_lengths(width: int, height: int, bits: int, interlaced: bool) -> list[int]:
    """Bytes of each stored row, its filter byte with it (PNG, sections 7.2 and 8.1)."""
    if not interlaced:
        return [1 + (width * bits + 7) // 8] * height
    lengths = []
    for top, left, down, across in _ADAM7:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            lengths += [1 + (columns * bits + 7) // 8] * rows
    return lengths


def _unpacked(data: bytes, most: int) -> bytes:
    """What the image data gives until it ends or makes no sense."""
    unpacker, rows = zlib.decompressobj(), bytearray()
    written = data.rstrip(b"\0\xff")
    last = len(data) if len(data) - len(written) < _PADDING else len(written)
    for kind, start, end in png_chunks(data):
        body = data[start + 8 : min(end - 4, last)] if kind == b"IDAT" else b""
        for at in range(0, len(body), _PIECE):
            try:
                rows += unpacker.decompress(body[at : at + _PIECE], max(1, most - len(rows)))
            except zlib.error:
                return bytes(rows)
            if unpacker.eof or len(rows) >= most:
                return bytes(rows[:most])
    return bytes(rows)
