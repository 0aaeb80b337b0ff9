"""One segment of a clip: decoded in a process, upscaled here, encoded in a thread, all at the same time."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ray_sr.images import Limits
from ray_sr.images.resample import resize_array
from ray_sr.upscaling import Engine
from ray_sr.upscaling.tile_results import TileResults
from ray_sr.video.clip import ClipInfo, Segment
from ray_sr.video.encoding import Encoding, SegmentNotes, SegmentWriter
from ray_sr.video.journal import note_segment
from ray_sr.video.processes import decode_segment

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


def render_segment(
    source: Path,
    info: ClipInfo,
    segment: Segment,
    target: Path,
    encoding: Encoding,
    upscaler: FrameUpscaler,
    limits: Limits,
    advance: Callable[[], None] = lambda: None,
) -> SegmentNotes:
    """Writes the segment's file and its notes. Raises InputError for the source, ResourceError for the rest.

    advance: called after each frame.
    """
    aside = target.with_name(f"{target.name}.{os.getpid()}.part")
    lost: list[int] = []
    writer = _WriterThread(SegmentWriter(aside, encoding))
    last_duration, frames = 0, decode_segment(source, info, segment, limits, lost)
    try:
        for frame in frames:
            writer.write(upscaler(frame.pixels), frame.time)
            last_duration = frame.duration
            advance()
        times, delay = writer.close()
    except BaseException:
        frames.close()  # type: ignore[attr-defined]
        writer.abort()
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    notes = SegmentNotes(times, last_duration, delay, sum(lost))
    note_segment(aside, target, notes)
    return notes


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
