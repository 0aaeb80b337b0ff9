"""ICC profiles as they come with pictures: whether they fit, and what their tone curve is. Source: ICC.1:2022."""

from __future__ import annotations

import struct

from ray_sr.images.colour import gray_axis_profile
from ray_sr.images.header import MAX_ICC_BYTES


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
    return any(_is_straight(body) for name, body in _tags(profile or b"") if name in (b"rTRC", b"kTRC"))


def _tags(profile: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each tag."""
    if len(profile) < 132:
        return []
    count = min(struct.unpack_from(">I", profile, 128)[0], (len(profile) - 132) // 12)
    rows = [struct.unpack_from(">4sII", profile, 132 + 12 * index) for index in range(count)]
    return [(name, profile[start : start + size]) for name, start, size in rows]


def _is_straight(curve: bytes) -> bool:
    if curve[:4] == b"curv" and len(curve) >= 12:
        points = struct.unpack_from(">I", curve, 8)[0]
        return points == 0 or (points == 1 and curve[12:14] == b"\1\0")
    return curve[:4] == b"para" and curve[8:10] == b"\0\0" and curve[12:16] == b"\0\1\0\0"


def as_rgb_profile(profile: bytes) -> bytes | None:
    """An RGB profile that shows equal samples as the gray `profile` shows gray; None where it has no curve."""
    curve = next((body for name, body in _tags(profile) if name == b"kTRC"), None)
    return gray_axis_profile(curve) if curve else None
