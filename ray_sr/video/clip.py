"""What is known of a clip before its frames are decoded, and how it is cut into segments.

Times are whole numbers of the stream's time base, as the container has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

CLIP_SUFFIXES = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".ogv": "ogg",
    ".flv": "flv",
    ".wmv": "asf",
    ".3gp": "3gp",
}
RESULT_SUFFIXES = {name: CLIP_SUFFIXES[name] for name in (".mp4", ".m4v", ".mov", ".mkv", ".webm")}

FRAMES_IN_SEGMENT = 96  # at most: what a kill costs, and what a node of a cluster does at a time

BT709, UNSPECIFIED, BT601 = 1, 2, 6  # matrix coefficients, ITU-T H.273 table 4
LIMITED, FULL = 1, 2  # AVColorRange


@dataclass(frozen=True)
class Colour:
    """As ITU-T H.273 numbers them: matrix, primaries and transfer; range 1 is limited, 2 is full, 0 unknown."""

    matrix: int
    primaries: int
    transfer: int
    range: int


@dataclass(frozen=True)
class ClipInfo:
    """One video stream.

    width, height: of the frames as they are stored, before `rotation`, a display matrix of nine numbers.
    pixels: format name of FFmpeg; bits: of a sample; chroma: log2 of the horizontal and vertical subsampling.
    sar: pixel aspect ratio. times: of the packets, sorted; keys: of those that decoding can begin at. frames'
    own times decide, these plan the work. warnings: what the result will lack.
    """

    stream: int
    width: int
    height: int
    pixels: str
    bits: int
    chroma: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    sar: Fraction | None
    rotation: tuple[int, ...] | None
    colour: Colour
    times: tuple[int, ...]
    keys: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, fields: dict[str, Any], times: tuple[int, ...], keys: tuple[int, ...]) -> ClipInfo:
        """From the fields that `to_dict` gives, and times."""
        known = {**fields, "times": times, "keys": keys, "colour": Colour(**fields["colour"])}
        for name in ("time_base", "rate", "sar"):
            known[name] = Fraction(fields[name]) if fields[name] else None
        for name in ("chroma", "rotation", "warnings"):
            known[name] = None if fields[name] is None else tuple(fields[name])
        return cls(**known)

    @property
    def matrix(self) -> int:
        """Matrix coefficients in use: where none are named, those of the usual guess by height."""
        return guessed_matrix(self.height) if self.colour.matrix == UNSPECIFIED else self.colour.matrix


def guessed_matrix(height: int) -> int:
    """What players take for frames that name no matrix: BT.709 from 720 rows on, else BT.601."""
    return BT709 if height >= 720 else BT601


@dataclass(frozen=True)
class Segment:
    """Frames with start <= time < stop (None: to the end). seek: time of a key frame well before; None: the file's
    beginning."""

    number: int
    start: int
    stop: int | None
    seek: int | None


@dataclass(frozen=True)
class SegmentNotes:
    """What is known of a segment that was written. times: of its frames; last_duration: of the last one, 0 where
    the source does not say. delay: frames by which decoding runs ahead of showing. lost: packets that could not be
    decoded."""

    times: list[int] = field(default_factory=list)
    last_duration: int = 0
    delay: int = 0
    lost: int = 0

    @classmethod
    def read(cls, path: Path) -> SegmentNotes | None:
        """None where the segment is not done."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


def plan_segments(info: ClipInfo, most: int = FRAMES_IN_SEGMENT) -> list[Segment]:
    """Segments of at most `most` frames that begin at key frames where there is one in their second half.

    Decoding begins one key frame earlier than it must: what a stream calls a key frame is not always one that
    all later frames are right from. The first segment begins before all frames.
    """
    times, keys = info.times, set(info.keys)
    starts = [0]
    while len(times) - starts[-1] > most:
        reach = range(starts[-1] + most, starts[-1] + most // 2, -1)
        starts.append(next((place for place in reach if times[place] in keys), reach.start))
    bounds = [times[place] for place in starts] if times else []
    segments = []
    for number, place in enumerate(starts):
        before = [time for time in info.keys if times and time <= times[place]][-2:]
        first = number == 0
        stop = bounds[number + 1] if number + 1 < len(bounds) else None
        seek = before[0] if len(before) == 2 and not first else None
        segments.append(Segment(number, -(1 << 62) if first else bounds[number], stop, seek))
    return segments
