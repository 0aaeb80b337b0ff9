"""Segments of a clip: decoded in a process, upscaled here, encoded in a thread, all at the same time."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ray_sr.images import Limits
from ray_sr.images.resample import resize_array
from ray_sr.upscaling import Engine
from ray_sr.upscaling.tile_results import TileResults
from ray_sr.video.clip import ClipInfo, Segment, SegmentNotes
from ray_sr.video.encoding import Encoding, SegmentWriter
from ray_sr.video.journal import note_segment
from ray_sr.video.processes import DecodedFrame, decode_segment

_FRAMES_AHEAD = 2


class FrameUpscaler:
    """Frames in the order of a clip to results of one size. Equal tiles, and equal frames, are computed once."""

    def __init__(self, engine: Engine, size: tuple[int, int]) -> None:
        """size: height and width of the results."""
        self._engine, self._size = engine, size
        if engine.tile_results is None:
            engine.tile_results = TileResults()
        self._last: tuple[bytes, np.ndarray] | None = None
        self.frames_reused = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """H×W×3 of uint8 or uint16 to a result of the same type."""
        key = TileResults.key(pixels)
        if self._last is not None and self._last[0] == key:
            self.frames_reused += 1
            return self._last[1]
        result = self._engine.run(pixels, pixels.dtype)
        if result.shape[:2] != self._size:
            result = resize_array(result, *self._size)
        self._last = key, result
        return result


def render_segments(
    source: Path,
    info: ClipInfo,
    segments: Sequence[tuple[Segment, Path]],
    encoding: Encoding,
    upscaler: FrameUpscaler,
    limits: Limits,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes each segment's file and its notes; those that follow each other are decoded in one go.

    advance: called after each frame. Raises InputError for the source, ResourceError for the rest.
    """
    for run in _runs(segments):
        first, last = run[0][0], run[-1][0]
        lost: list[int] = []
        whole = Segment(first.number, first.start, last.stop, first.seek)
        frames = decode_segment(source, info, whole, limits, lost)
        try:
            ahead = _Ahead(frames)
            for segment, target in run:
                before = sum(lost)
                aside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
                notes = _render(ahead.until(segment.stop), aside, encoding, upscaler, advance)
                note_segment(aside, target, replace(notes, lost=sum(lost) - before))
        finally:
            frames.close()  # type: ignore[attr-defined]


def _runs(segments: Sequence[tuple[Segment, Path]]) -> Iterator[list[tuple[Segment, Path]]]:
    run: list[tuple[Segment, Path]] = []
    for item in segments:
        if run and item[0].number != run[-1][0].number + 1:
            yield run
            run = []
        run.append(item)
    if run:
        yield run


class _Ahead:
    """Frames with a look at the next one."""

    def __init__(self, frames: Iterator[DecodedFrame]) -> None:
        self._frames = frames
        self._next = next(frames, None)

    def until(self, stop: int | None) -> Iterator[DecodedFrame]:
        """Frames before this time."""
        while self._next is not None and (stop is None or self._next.time < stop):
            frame, self._next = self._next, None
            yield frame
            self._next = next(self._frames, None)


def _render(
    frames: Iterator[DecodedFrame],
    aside: Path,
    encoding: Encoding,
    upscaler: FrameUpscaler,
    advance: Callable[[], None],
) -> SegmentNotes:
    writer = _WriterThread(SegmentWriter(aside, encoding))
    last_duration = 0
    try:
        for frame in frames:
            writer.write(upscaler(frame.pixels), frame.time)
            last_duration = frame.duration
            advance()
        times, delay = writer.close()
    except BaseException:
        writer.abort()
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    return SegmentNotes(times, last_duration, delay)


class _WriterThread:
    """A SegmentWriter that encodes while the next frame is computed."""

    def __init__(self, writer: SegmentWriter) -> None:
        self._writer = writer
        self._frames: queue.Queue[tuple[np.ndarray, int] | None] = queue.Queue(_FRAMES_AHEAD)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, pixels: np.ndarray, time: int) -> None:
        if self._failure is not None:
            raise self._failure
        self._frames.put((pixels, time))

    def close(self) -> tuple[list[int], int]:
        """Times of all frames, and by how many decoding runs ahead."""
        self._frames.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._writer.times, self._writer.close()

    def abort(self) -> None:
        self._frames.put(None)
        self._thread.join()
        self._writer.abort()

    def _work(self) -> None:
        while (item := self._frames.get()) is not None:
            if self._failure is not None:
                continue
            try:
                self._writer.write(*item)
            except BaseException as error:
                self._failure = error
