"""Clips for tests, made by PyAV, and what is in a file."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData

BASE = Fraction(1, 90000)
RATE = 24
VARIABLE = (3000, 4500, 6000, 1500, 9000)  # steps between frames, in BASE


def steady(count: int) -> list[int]:
    """Times of 24 frames a second."""
    return [3750 * index for index in range(count)]


def uneven(count: int) -> list[int]:
    """Times of a variable frame rate."""
    return [sum(VARIABLE[step % 5] for step in range(index)) for index in range(count)]


def moving_bar(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A ramp with colours, over which a bright block moves; uint8 H×W×3."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    left = (3 * index) % (width - 8)
    picture[8:20, left : left + 8] = 255
    return picture


@dataclass
class Clip:
    """How a clip is made. colour: matrix, primaries, transfer, range."""

    pictures: list[np.ndarray]
    times: list[int]
    codec: str = "libx264"
    pixels: str = "yuv420p"
    colour: tuple[int, int, int, int] = (1, 1, 1, 1)
    rotation: int = 0
    sound: str | None = "aac"
    options: dict[str, str] = field(default_factory=lambda: {"g": "24", "crf": "10"})
    sar: Fraction | None = None
    title: str | None = None
    chapters: bool = False
    subtitles: bool = False


def write_clip(path: Path, clip: Clip) -> Path:
    """Makes the file; its sound is as long as its pictures."""
    with av.open(str(path), "w") as target:
        video = target.add_stream(clip.codec, rate=RATE, options=clip.options)
        video.height, video.width = clip.pictures[0].shape[:2]
        video.pix_fmt = clip.pixels
        video.time_base = video.codec_context.time_base = BASE
        context: Any = video.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = clip.colour
        if clip.sar:
            context.sample_aspect_ratio = clip.sar
        if clip.rotation:
            video.set_display_rotation(clip.rotation)
        sound = target.add_stream(clip.sound, rate=48000) if clip.sound else None
        words = _add_words(path, target) if clip.subtitles else None
        _describe(target, clip, sound)
        for picture, time in zip(clip.pictures, clip.times, strict=True):
            target.mux(video.encode(_frame(picture, time, clip)))
        target.mux(video.encode(None))
        if sound is not None:
            _write_sound(target, sound, (clip.times[-1] + 3750) / 90000)
        if words is not None:
            _write_words(path, target, words)
    return path


def _describe(target: Any, clip: Clip, sound: Any) -> None:
    if clip.title:
        target.metadata["title"] = clip.title
        if sound is not None:
            sound.metadata["language"] = "nor"
    if clip.chapters:
        millisecond = Fraction(1, 1000)
        named = [(0, 400, "Start"), (400, 900, "Slutt")]
        chapters = [
            {"id": number, "start": start, "end": end, "time_base": millisecond, "metadata": {"title": title}}
            for number, (start, end, title) in enumerate(named)
        ]
        target.set_chapters(chapters)


def _frame(picture: np.ndarray, time: int, clip: Clip) -> av.VideoFrame:
    name = "rgb24" if picture.dtype == np.uint8 else "rgb48le"
    matrix, primaries, transfer, range_ = clip.colour
    frame = av.VideoFrame.from_ndarray(picture, format=name).reformat(
        format=clip.pixels,
        dst_colorspace={1: 1, 9: 9}.get(matrix, 5),
        src_color_range=2,
        dst_color_range=range_ or 1,
        interpolation="BICUBIC",
    )
    frame.pts, frame.time_base = time, BASE
    frame.colorspace, frame.color_primaries, frame.color_trc = matrix, primaries, transfer
    frame.color_range = range_
    return frame


def _write_sound(target: Any, stream: Any, seconds: float) -> None:
    samples = 960 if stream.codec_context.name == "libopus" else 1024
    layout = {"pcm_s16le": "s16", "libopus": "flt"}.get(stream.codec_context.name, "fltp")
    for piece in range(int(seconds * 48000 / samples)):
        wave = 0.3 * np.sin(2 * np.pi * 440 * (np.arange(samples) + piece * samples) / 48000)
        both = np.stack([wave, wave]).astype(np.float32)
        if layout == "flt":
            both = both.T.reshape(1, -1)
        if layout == "s16":
            both = (both.T.reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(both), format=layout, layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, piece * samples, Fraction(1, 48000)
        target.mux(stream.encode(frame))
    target.mux(stream.encode(None))


_WORDS = "1\n00:00:00,100 --> 00:00:00,400\nHei\n\n2\n00:00:00,500 --> 00:00:00,800\nHa det\n\n"


def _add_words(path: Path, target: Any) -> Any:
    path.with_suffix(".srt").write_text(_WORDS)
    with av.open(str(path.with_suffix(".srt"))) as words:
        return target.add_stream_from_template(words.streams.subtitles[0], opaque=True)


def _write_words(path: Path, target: Any, stream: Any) -> None:
    with av.open(str(path.with_suffix(".srt"))) as words:
        for packet in words.demux():
            if packet.pts is not None:
                packet.stream = stream
                target.mux(packet)
    path.with_suffix(".srt").unlink()


@dataclass(frozen=True)
class Contents:
    """What PyAV reads of a file. times: of frames in units of time_base; streams: type, codec, language and the
    hash of the packets and their times, in milliseconds, of all streams but the video.
    """

    times: list[int]
    time_base: Fraction
    seconds: float
    stream_seconds: float | None
    size: tuple[int, int]
    pixels: str
    colour: tuple[int, int, int, int]
    rotation: int
    matrix: tuple[int, ...] | None
    sar: Fraction | None
    streams: list[tuple[str, str, str | None, str]]
    chapters: list[tuple[float, float, str]]
    title: str | None


def contents(path: Path) -> Contents:
    """Reads a file with PyAV."""
    with av.open(str(path)) as container:
        streams = []
        for stream in container.streams:
            if stream.type == "video" or stream.type == "data":
                continue
            digest = hashlib.sha256()
            with av.open(str(path)) as again:
                for packet in again.demux(again.streams[stream.index]):
                    if packet.pts is not None:
                        digest.update(f"{float(packet.pts * packet.time_base):.3f}".encode() + bytes(packet))
            context = stream.codec_context
            streams.append((stream.type, context.name, stream.language, digest.hexdigest()))
        video = container.streams.video[0]
        stamp = None if video.duration is None else float(video.duration * video.time_base)
        chapters = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"].get("title", ""))
            for c in container.chapters()
        ]
        frames = list(container.decode(video))
        first = frames[0]
        matrix = next((bytes(side) for side in first.side_data if side.type == SideData.DISPLAYMATRIX), None)
        return Contents(
            [frame.pts for frame in frames],
            video.time_base,
            container.duration / 1e6,
            stamp,
            (first.width, first.height),
            first.format.name,
            (int(first.colorspace), int(first.color_primaries), int(first.color_trc), int(first.color_range)),
            first.rotation,
            None if matrix is None else struct.unpack("=9i", matrix[:36]),
            video.sample_aspect_ratio,
            streams,
            chapters,
            container.metadata.get("title"),
        )


def rgb_frames(path: Path) -> list[np.ndarray]:
    """All frames as 8-bit RGB, by the matrix and range that they are tagged with (BT.601 where with none)."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            matrix = {1: 1, 9: 9}.get(int(frame.colorspace), 5)
            rgb = frame.reformat(
                format="rgb24",
                src_colorspace=matrix,
                src_color_range=int(frame.color_range) or 1,
                dst_color_range=2,
                interpolation="BICUBIC",
            )
            found.append(rgb.to_ndarray())
    return found
