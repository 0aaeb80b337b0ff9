"""What a JPEG XL file says about itself: the boxes around the codestream, and the codestream's own header.

Sources: ISO/IEC 18181-1 annex D (SizeHeader, ImageMetadata, ColourEncoding), 18181-2 (file format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ray_sr.images.bits import Bits
from ray_sr.images.colour import HDR_TRANSFERS
from ray_sr.images.header import Header, PhotoError
from ray_sr.images.heif_header import boxes

_HEAD_BYTES = 4096  # of the codestream: its header is among them, but for names of extra channels
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_ALPHA, _SPOT_COLOUR, _FILTER_ARRAY = 0, 2, 5
_GRAY, _XYB = 1, 2
_CUSTOM = 2

_Choice = tuple[int, int]  # what is added, and how many bits are read
_SIDE: tuple[_Choice, ...] = ((1, 9), (1, 13), (1, 18), (1, 30))
_ENUM: tuple[_Choice, ...] = ((0, 0), (1, 0), (2, 4), (18, 6))


@dataclass
class _Found:
    depth: int = 8
    orientation: int = 1
    alpha: bool = False
    premultiplied: bool = False
    gray: bool = False
    srgb: bool = True
    float_samples: bool = False
    other_channels: bool = False


def scan_jxl(data: bytes) -> Header:
    """Header of a JPEG XL file, bare or in boxes; width and height are those of the upright picture."""
    stream, gain_map = _codestream(data)
    if stream[:2] != b"\xff\x0a":
        raise PhotoError("the JPEG XL has no picture in it")
    bits = Bits(stream[2:_HEAD_BYTES], least_first=True)
    width, height = _size(bits)
    found = _Found()
    if not bits.read(1):
        _metadata(bits, found)
    if found.float_samples:
        raise PhotoError("JPEG XL of floating point numbers is not supported", "unsupported-image")
    if found.orientation > 4:
        width, height = height, width
    words = {"gainmap-dropped": gain_map, "extra-channel-dropped": found.other_channels}
    return Header(
        "jxl",
        width,
        height,
        depth=found.depth,
        channels=(1 if found.gray else 3) + found.alpha,
        turned=found.orientation > 1,
        premultiplied=found.premultiplied,
        warnings=tuple(word for word, applies in words.items() if applies),
        icc=b"" if found.srgb else None,
    )


def _codestream(data: bytes) -> tuple[bytes, bool]:
    """The first bytes of the codestream, and whether the file has a gain map."""
    if data[:2] == b"\xff\x0a":
        return data[:_HEAD_BYTES], False
    stream, gain_map = b"", False
    for kind, body in boxes(data, 0, len(data)):
        gain_map |= kind == b"jhgm"
        if len(stream) < _HEAD_BYTES and kind in (b"jxlc", b"jxlp"):
            start = 4 if kind == b"jxlp" else 0
            stream += bytes(body[start : start + _HEAD_BYTES])
    return stream[:_HEAD_BYTES], gain_map


def _u32(bits: Bits, choices: tuple[_Choice, ...]) -> int:
    least, more = choices[bits.read(2)]
    return least + bits.read(more)


def _size(bits: Bits) -> tuple[int, int]:
    small = bits.read(1)

    def side() -> int:
        return 8 * (bits.read(5) + 1) if small else _u32(bits, _SIDE)

    height, ratio = side(), bits.read(3)
    if not ratio:
        return side(), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _metadata(bits: Bits, found: _Found) -> None:
    if bits.read(1):  # extra_fields
        found.orientation = bits.read(3) + 1
        if bits.read(1):
            _size(bits)
        if bits.read(1):
            _skip_preview(bits)
        if bits.read(1):
            raise PhotoError("is a JPEG XL animation; only single pictures are accepted", "animated-image")
    found.depth, found.float_samples = _bit_depth(bits)
    bits.skip(1)
    for _ in range(_u32(bits, ((0, 0), (1, 0), (2, 4), (1, 12)))):
        _extra_channel(bits, found)
    bits.skip(1)  # xyb_encoded
    if not bits.read(1):
        _colours(bits, found)


def _skip_preview(bits: Bits) -> None:
    sides = ((16, 0), (32, 0), (1, 5), (33, 9)) if bits.read(1) else ((1, 6), (65, 8), (321, 10), (1345, 12))
    _u32(bits, sides)
    if not bits.read(3):
        _u32(bits, sides)


def _bit_depth(bits: Bits) -> tuple[int, bool]:
    if not bits.read(1):
        return _u32(bits, ((8, 0), (10, 0), (12, 0), (1, 6))), False
    depth = _u32(bits, ((32, 0), (16, 0), (24, 0), (1, 6)))
    bits.skip(4)
    return depth, True


def _extra_channel(bits: Bits, found: _Found) -> None:
    if bits.read(1):
        found.alpha = True
        return
    kind = _u32(bits, _ENUM)
    _bit_depth(bits)
    _u32(bits, ((0, 0), (3, 0), (4, 0), (1, 3)))
    bits.skip(8 * _u32(bits, ((0, 0), (0, 4), (16, 5), (48, 10))))
    if kind == _ALPHA:
        found.alpha = True
        found.premultiplied |= bool(bits.read(1))
    else:
        found.other_channels = True
    if kind == _SPOT_COLOUR:
        bits.skip(4 * 16)
    elif kind == _FILTER_ARRAY:
        _u32(bits, ((1, 0), (0, 2), (3, 4), (19, 8)))


def _colours(bits: Bits, found: _Found) -> None:
    """ColourEncoding: whether it is gray, and whether it is sRGB's."""
    by_profile, space = bits.read(1), _u32(bits, _ENUM)
    found.gray = space == _GRAY
    found.srgb = False
    if by_profile or space == _XYB:
        return
    white = _u32(bits, _ENUM)
    _skip_points(bits, 1 if white == _CUSTOM else 0)
    primaries = 1
    if not found.gray:
        primaries = _u32(bits, _ENUM)
        _skip_points(bits, 3 if primaries == _CUSTOM else 0)
    if bits.read(1):
        return  # a gamma
    transfer = _u32(bits, _ENUM)
    if transfer in HDR_TRANSFERS:
        raise PhotoError("HDR pictures (PQ or HLG) are not supported; convert to SDR first", "unsupported-image")
    found.srgb = (white, primaries, transfer) == (1, 1, 13)


def _skip_points(bits: Bits, points: int) -> None:
    for _ in range(2 * points):
        _u32(bits, ((0, 19), (524288, 19), (1048576, 20), (2097152, 21)))


def exif_in_box(body: bytes) -> bytes | None:
    """EXIF block of an Exif box, whose first four bytes say where it begins."""
    if len(body) <= 4:
        return None
    return body[4 + struct.unpack_from(">I", body)[0] :] or None
