"""Decoder processes as the others use them: started, listened to, and killed when they are silent for too long."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ray_sr.errors import InputError, ResourceError
from ray_sr.images import Limits
from ray_sr.video.clip import ClipInfo, Segment
from ray_sr.video.messages import receive, send

SILENCE_S = 120.0  # without an answer after which a decoder counts as stuck
THREADS = 2
_FRAMES_AHEAD = 2
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")

Answer = tuple[dict[str, Any], bytearray]


@dataclass(frozen=True)
class DecodedFrame:
    """One frame. pixels: H×W×3, RGB, uint8 or uint16. time and duration in units of the clip's time base."""

    pixels: np.ndarray
    time: int
    duration: int


def answers(
    task: dict[str, Any],
    path: str | os.PathLike[str],
    silence_s: float = SILENCE_S,
    program: str = "ray_sr.video.decode_process",
) -> Iterator[Answer]:
    """Runs a task in a new decoder process and gives its answers as they come, at most a few ahead of their use.

    Raises InputError where the clip is to blame, ResourceError where the system is; both name the path. The
    process is gone when this iterator is.
    """
    found: queue.Queue[Answer | BaseException] = queue.Queue(_FRAMES_AHEAD)
    process = _start(program)
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(process, task, found, ended), daemon=True)
    listener.start()
    try:
        while True:
            try:
                answer = found.get(timeout=silence_s)
            except queue.Empty:
                raise InputError(f"{path}: the decoder was stuck for {silence_s:.0f} s and was ended") from None
            if isinstance(answer, BaseException):
                status = process.wait()
                raise InputError(f"{path}: the decoder failed on it (status {status})") from None
            if "error" in answer[0]:
                kind = InputError if answer[0]["error"] == "clip" else ResourceError
                raise kind(f"{path}: {answer[0]['detail']}")
            yield answer
            if answer[0].get("end") or "info" in answer[0]:
                return
    finally:
        ended.set()
        process.kill()
        process.wait()
        with contextlib.suppress(queue.Empty):
            while True:
                found.get_nowait()
        listener.join()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, stream).close()


def _listen(
    process: subprocess.Popen[bytes],
    task: dict[str, Any],
    found: queue.Queue[Answer | BaseException],
    ended: threading.Event,
) -> None:
    """Puts answers, then the error that ended them, into the queue as long as somebody takes them."""
    item: Answer | BaseException
    try:
        send(cast(BinaryIO, process.stdin), task)
        while True:
            item = receive(cast(BinaryIO, process.stdout))
            if not _put(found, item, ended):
                return
    except (OSError, EOFError, ValueError) as error:
        _put(found, error, ended)


def _put(found: queue.Queue[Answer | BaseException], item: Answer | BaseException, ended: threading.Event) -> bool:
    while not ended.is_set():
        try:
            found.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False


def _start(program: str) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", program]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def probe_clip(path: Path, limits: Limits, format: str, silence_s: float = SILENCE_S) -> ClipInfo:
    """What is known of a clip. format: of the result, as FFmpeg calls it.

    Raises InputError, one line that names the path, also for what the format cannot take over.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: is not a regular file")
    task = {"task": "probe", "format": format, **_common(path, limits)}
    for head, body in answers(task, path, silence_s):
        if "info" in head:
            numbers = array("q")
            numbers.frombytes(bytes(body))
            count = head["times"]
            return ClipInfo.from_dict(head["info"], tuple(numbers[:count]), tuple(numbers[count:]))
    raise InputError(f"{path}: the decoder gave no answer")


def decode_segment(
    path: Path, info: ClipInfo, segment: Segment, limits: Limits, lost: list[int], silence_s: float = SILENCE_S
) -> Iterator[DecodedFrame]:
    """The frames of a segment in order. `lost` grows by what could not be decoded, where limits are not strict."""
    deep = info.bits > 8
    task = {
        "task": "frames",
        **_common(path, limits),
        "seek": segment.seek,
        "start": segment.start,
        "stop": segment.stop,
        "size": (info.width, info.height),
        "deep": deep,
        "threads": THREADS,
        "strict": limits.strict,
    }
    for head, body in answers(task, path, silence_s):
        if "lost" in head:
            lost.append(head["lost"])
        if "time" not in head:
            continue
        if head["damaged"] and limits.strict:
            at = float(head["time"] * info.time_base)
            raise InputError(f"{path}: is damaged at {at:.1f} s: --lenient takes what can be read")
        pixels = np.frombuffer(body, "<u2" if deep else np.uint8).reshape(info.height, info.width, 3)
        yield DecodedFrame(pixels, head["time"], head["duration"])


def _common(path: Path, limits: Limits) -> dict[str, Any]:
    return {"path": str(path.absolute()), "max_pixels": limits.max_pixels, "max_side": limits.max_side}
