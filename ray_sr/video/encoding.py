"""Frames into segments: each its own run of the encoder, so that it begins with a key frame and refers to no other.

All segments of a clip are encoded with the same settings and number of threads on whatever machine, so the same
frames give the same bytes, and segments join without being encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.video.clip import FULL, LIMITED, UNSPECIFIED, ClipInfo, Colour, guessed_matrix
from ray_sr.video.containers import SCALING, sws_matrix

ENCODER_THREADS = 4
CODECS = ("h264", "h265", "av1", "vp9", "ffv1")

_ENCODERS = {"h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "ffv1": "ffv1"}
_CRF = {"h264": 17, "h265": 20, "av1": 24, "vp9": 24}
_MOST_CRF = {"h264": 51, "h265": 51, "av1": 63, "vp9": 63}
_OPTIONS: dict[str, dict[str, str]] = {
    "h264": {"preset": "medium"},
    "h265": {"preset": "medium", "x265-params": "log-level=error:open-gop=0:frame-threads=2:pools=2"},
    "av1": {"preset": "6"},
    "vp9": {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "2"},
    "ffv1": {"level": "3", "slices": "4", "slicecrc": "1"},
}
_SUITS = {"mp4": ("h264", "h265", "av1", "vp9"), "mov": ("h264", "h265"), "webm": ("vp9", "av1")}
_SUBSAMPLING = {(1, 1): "yuv420p", (1, 0): "yuv422p", (0, 0): "yuv444p"}


@dataclass(frozen=True)
class Encoding:
    """How the frames of a result are encoded. time_base, rate: of the source. colour: what the result is tagged
    with; matrix and range: what its samples are made with."""

    codec: str
    crf: int | None
    pixels: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    sar: Fraction | None
    colour: Colour
    matrix: int
    range: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        return {**fields, **{name: str(fields[name]) for name in ("time_base", "rate", "sar")}}


def choose_encoding(
    info: ClipInfo, size: tuple[int, int], container: str, codec: str | None, crf: int | None
) -> Encoding:
    """The encoding of a result of this (height, width). By default h264, h265 for more than 8 bits, vp9 in webm.

    Samples keep the source's subsampling, range and (up to 10, with ffv1 16) bits where the codec has them.
    Raises RecipeError for a codec that the container does not hold and a crf out of range.
    """
    suits = _SUITS.get(container, CODECS)
    chosen = codec or ("vp9" if container == "webm" else "h265" if info.bits > 8 else "h264")
    if chosen not in suits:
        raise RecipeError(f"{container} does not hold {chosen}: choose --codec {', '.join(suits)} or name a .mkv")
    most = _MOST_CRF.get(chosen)
    if crf is not None and (most is None or not 0 <= crf <= most):
        told = "is lossless and has no crf" if most is None else f"takes a crf of 0 to {most}"
        raise RecipeError(f"--crf {crf}: {chosen} {told}")
    full = info.colour.range == FULL or info.pixels.startswith("yuvj")
    matrix, colour = _tags(info, size[0])
    return Encoding(
        chosen,
        _CRF.get(chosen) if crf is None else crf,
        _pixel_format(info, chosen),
        size[1],
        size[0],
        info.time_base,
        info.rate,
        info.sar,
        colour,
        matrix,
        FULL if full else LIMITED,
    )


def _tags(info: ClipInfo, height: int) -> tuple[int, Colour]:
    """The matrix, and the tags, which name a matrix that was left to a guess where the guess would change."""
    if info.pixels.startswith(("rgb", "bgr", "gbr", "pal", "gray", "argb", "abgr")):
        matrix = guessed_matrix(height)
        return matrix, Colour(matrix, info.colour.primaries, info.colour.transfer, LIMITED)
    named = info.colour.matrix
    if named == UNSPECIFIED and guessed_matrix(height) != info.matrix:
        named = info.matrix
    return info.matrix, Colour(named, info.colour.primaries, info.colour.transfer, info.colour.range)


def _pixel_format(info: ClipInfo, codec: str) -> str:
    rgb = info.pixels.startswith(("rgb", "bgr", "gbr", "argb", "abgr"))
    name = "yuv444p" if rgb else _SUBSAMPLING.get(info.chroma, "yuv420p")
    if info.pixels.startswith("gray") or codec == "av1":
        name = "yuv420p"
    deep = "16le" if codec == "ffv1" and info.bits > 10 else "10le"
    return name if info.bits <= 8 else name + deep


class SegmentWriter:
    """Encodes the frames of one segment into a file, of the NUT container, which keeps any time exactly."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self._encoding = encoding
        os.environ.setdefault("SVT_LOG", "1")
        av.logging.set_level(None)
        try:
            self._container = av.open(f"file:{path}", "w", format="nut")
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written ({error.strerror or error})") from None
        self._path = path
        self._stream = self._add_stream()
        self.times: list[int] = []
        self._shown: list[int] = []

    def _add_stream(self) -> Any:
        encoding = self._encoding
        options = {**_OPTIONS[encoding.codec], "g": "250"}
        if encoding.crf is not None:
            options["crf"] = str(encoding.crf)
        stream: Any = self._container.add_stream(_ENCODERS[encoding.codec], rate=encoding.rate, options=options)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = encoding.width, encoding.height, encoding.pixels
        stream.time_base = context.time_base = encoding.time_base
        context.thread_count = ENCODER_THREADS
        if encoding.sar:
            context.sample_aspect_ratio = encoding.sar
        set_colour(context, encoding.colour)
        return stream

    def write(self, pixels: np.ndarray, time: int) -> None:
        """Adds a frame, H×W×3 RGB of 8 or 16 bits, at its time."""
        encoding = self._encoding
        rgb = VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels), format="rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        )
        frame = rgb.reformat(
            format=encoding.pixels,
            dst_colorspace=sws_matrix(encoding.matrix),
            src_color_range=FULL,
            dst_color_range=encoding.range,
            interpolation=SCALING,
        )
        frame.pts, frame.time_base = time, encoding.time_base
        set_colour(frame, encoding.colour)
        self.times.append(time)
        self._mux(self._stream.encode(frame))

    def close(self) -> int:
        """Ends the file; how many frames decoding runs ahead of showing. Raises ResourceError."""
        if self.times:
            self._mux(self._stream.encode(None))
        try:
            self._container.close()
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written ({error.strerror or error})") from None
        places = {time: place for place, time in enumerate(sorted(self._shown))}
        return max((order - places[time] for order, time in enumerate(self._shown)), default=0)

    def abort(self) -> None:
        """Closes the file as it is."""
        try:
            self._container.close()
        except (OSError, ValueError):
            return

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            assert packet.pts is not None
            self._shown.append(round(packet.pts * packet.time_base / self._encoding.time_base))
            try:
                self._container.mux(packet)
            except OSError as error:
                raise ResourceError(f"{self._path}: cannot be written ({error.strerror or error})") from None


def set_colour(target: Any, colour: Colour) -> None:
    """Tags a frame or a codec context."""
    if colour.range:
        target.color_range = colour.range
    target.colorspace, target.color_primaries = colour.matrix, colour.primaries
    target.color_trc = colour.transfer
