"""Colours as containers name them, by numbers, and the ICC profile that says the same.

A picture keeps one statement of its colours, an ICC profile, which every format can hold; cICP and nclx codes
and PNG's gAMA and cHRM are turned into one here. Sources: ITU-T H.273 (07/2024) tables 2 and 3; PNG third
edition section 11.3.2; ICC.1:2022 sections 7, 8.3, 8.4 and 10; IEC 61966-2-1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Chromaticities = tuple[float, ...]  # x and y of red, green, blue and white

_D65, _ILLUMINANT_C = (0.3127, 0.3290), (0.310, 0.316)
_SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB_PRIMARIES,
    2: _SRGB_PRIMARIES,  # not specified
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *_ILLUMINANT_C),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *_ILLUMINANT_C),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),
}

# Parameters of ICC's parametric curve of type 3: ((a·x + b)^g for x >= d, else c·x), or of type 0: x^g.
Curve = tuple[float, ...]
_SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_VIDEO_CURVE: Curve = (2.4,)  # how displays show what these cameras' curves encode: ITU-R BT.1886
CURVES: dict[int, Curve] = {
    1: _VIDEO_CURVE,
    2: _SRGB_CURVE,  # not specified
    4: (2.2,),
    5: (2.8,),
    6: _VIDEO_CURVE,
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4.0, 0.0912),
    8: (1.0,),
    13: _SRGB_CURVE,
    14: _VIDEO_CURVE,
    15: _VIDEO_CURVE,
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),
}
HDR_TRANSFERS = (16, 18)  # PQ and HLG
GAMMA_OF_SRGB = 1 / 2.2

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Colours:
    """Where the primaries and the white of a picture lie, and how its values become light."""

    primaries: Chromaticities = _SRGB_PRIMARIES
    curve: Curve = _SRGB_CURVE

    @property
    def is_srgb(self) -> bool:
        """Whether they are sRGB's within what an 8-bit value can show."""
        near = np.abs(np.subtract(self.primaries, _SRGB_PRIMARIES)).max() < 0.001
        return bool(near and self.curve == _SRGB_CURVE)


def colours_of_codes(primaries: int, transfer: int, *, photo: bool = False) -> Colours | None:
    """The colours of cICP or nclx codes; None for codes without a meaning here.

    photo: the curve of a video camera means sRGB's, as browsers take it in AVIF and HEIC, whose writers name it
    for want of another.
    """
    if primaries not in PRIMARIES or transfer not in CURVES:
        return None
    curve = CURVES[transfer]
    return Colours(PRIMARIES[primaries], _SRGB_CURVE if photo and curve == _VIDEO_CURVE else curve)


def profile_of(colours: Colours, channels: int) -> bytes | None:
    """ICC profile (version 4, display) for gray (1) or RGB (3) pixels; None where the primaries make no sense."""
    return _profile(colours.primaries, _curve(colours.curve), channels)


def _profile(primaries: Chromaticities, curve: bytes, channels: int) -> bytes | None:
    white = _xyz(primaries[6:])
    matrix = _to_xyz(primaries, white)
    if white is None or matrix is None:
        return None
    adapted = _adaptation(white)
    tags = {
        b"desc": _text("ray-sr: colours as the picture named them"),
        b"cprt": _text("No copyright: may be used freely"),
        b"wtpt": _xyz_tag(_D50),
    }
    if channels == 1:
        tags[b"kTRC"] = curve
    else:
        columns = (adapted @ matrix).T
        tags |= {name: _xyz_tag(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags[b"chad"] = b"sf32\0\0\0\0" + _fixed(adapted.ravel())
    return _assembled(tags, b"GRAY" if channels == 1 else b"RGB ")


def gray_axis_profile(curve: bytes) -> bytes:
    """ICC profile of sRGB's primaries with this tone curve (a whole tag) for all three."""
    return _profile(_SRGB_PRIMARIES, curve, 3) or b""


def _xyz(chromaticity: Sequence[float]) -> np.ndarray | None:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y]) if y > 0 else None


def _to_xyz(primaries: Chromaticities, white: np.ndarray | None) -> np.ndarray | None:
    """XYZ of linear red, green and blue as columns, which add up to the white."""
    points = [_xyz(primaries[at : at + 2]) for at in (0, 2, 4)]
    if white is None or any(point is None for point in points):
        return None
    columns = np.stack(points, axis=1)  # type: ignore[arg-type]
    if abs(np.linalg.det(columns)) < 1e-6:
        return None
    matrix = columns * np.linalg.solve(columns, white)
    return matrix if np.abs(matrix).max() < 100 else None


def _adaptation(white: np.ndarray) -> np.ndarray:
    """From this white to D50, in Bradford's cone space (ICC.1:2022, annex E)."""
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return np.asarray(np.linalg.inv(_BRADFORD) @ (gains[:, None] * _BRADFORD))


def _fixed(values: Sequence[float] | np.ndarray) -> bytes:
    """s15Fixed16 numbers."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _xyz_tag(values: Sequence[float] | np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(curve: Curve) -> bytes:
    return b"para" + struct.pack(">IHH", 0, 3 if len(curve) > 1 else 0, 0) + _fixed(curve)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _assembled(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """The profile of these tags; equal tags share one place."""
    start = 128 + 4 + 12 * len(tags)
    table, body, places = b"", b"", {}
    for name, content in tags.items():
        if content not in places:
            places[content] = start + len(body)
            body += content + b"\0" * (-len(content) % 4)
        table += struct.pack(">4sII", name, places[content], len(content))
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + _fixed(_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
