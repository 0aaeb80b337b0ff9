"""A decoder process: opens a clip that nobody vouched for, and does one task with it.

    python -m ray_sr.video.decode_process

The task comes on stdin as one message; answers go to stdout. Memory is bounded by the kernel; the time is bounded
by who reads the answers and kills this process when none come.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ray_sr.video.clip import FULL, LIMITED, UNSPECIFIED, Colour, guessed_matrix
from ray_sr.video.containers import SCALING, ClipError, main_video, open_clip, sws_matrix, words
from ray_sr.video.joining import check_holds, join
from ray_sr.video.messages import receive, send

_BASE_MEMORY = 3 << 30
_MEMORY_PER_PIXEL = 400  # some 40 frames of 4:4:4 with 16 bits, which decoders keep with their threads
_MOST_PACKETS = 1 << 24
_LOST = {
    SideData.MASTERING_DISPLAY_METADATA: "mastering-display-dropped",
    SideData.CONTENT_LIGHT_LEVEL: "content-light-level-dropped",
    SideData.DYNAMIC_HDR_PLUS: "hdr10plus-dropped",
    SideData.DOVI_METADATA: "dolby-vision-dropped",
    SideData.DOVI_RPU_BUFFER: "dolby-vision-dropped",
    SideData.A53_CC: "closed-captions-dropped",
    SideData.STEREO3D: "stereo-layout-dropped",
    SideData.SPHERICAL: "spherical-layout-dropped",
}


def probe(task: dict[str, Any], answers: BinaryIO) -> None:
    """Answers with the fields of ClipInfo, and the times of packets and of key frames as 64-bit numbers.

    task: `format` of the result is checked, so that what cannot be joined is said before the work.
    """
    with open_clip(task["path"]) as container:
        stream = main_video(container)
        _bound(stream, task)
        check_holds(container, stream, task["format"])
        times, keys = array("q"), array("q")
        for packet in container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if time is None or packet.is_discard:
                continue
            times.append(time)
            if packet.is_keyframe:
                keys.append(time)
            if len(times) > _MOST_PACKETS:
                raise ClipError(f"has more than {_MOST_PACKETS} frames")
            if len(times) % 4096 == 0:
                send(answers, {"at": len(times)})
        length = None if stream.duration is None else (stream.start_time or 0) + stream.duration
    with open_clip(task["path"]) as container:
        stream = main_video(container)
        stream.thread_count = 1
        try:
            frame = next(container.decode(stream))
        except (StopIteration, av.error.FFmpegError) as error:
            raise ClipError(f"holds no frame that can be decoded ({words(error)})") from None
        facts = _facts(stream, frame)
    ordered = sorted(set(times))
    if length is not None and ordered and (length - ordered[-1]) * stream.time_base > 2:
        facts["warnings"].append("ends-before-its-header-says")
    body = array("q", ordered).tobytes() + array("q", sorted(set(keys))).tobytes()
    send(answers, {"info": facts, "times": len(ordered)}, body)


def _bound(stream: VideoStream, task: dict[str, Any]) -> None:
    """Refuses frames that are too large, and bounds the memory of this process by their size."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise ClipError("does not say how large its frames are")
    if width * height > task["max_pixels"] or max(width, height) > task["max_side"]:
        raise ClipError(f"{width}x{height} is over the limit of {task['max_pixels']} pixels a frame")
    memory = _BASE_MEMORY + _MEMORY_PER_PIXEL * width * height
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))


def _facts(stream: Any, frame: Any) -> dict[str, Any]:
    """The fields of ClipInfo but for times."""
    components = frame.format.components
    chroma = components[1] if len(components) > 2 else components[0]
    across = (frame.width // max(1, chroma.width)).bit_length() - 1
    down = (frame.height // max(1, chroma.height)).bit_length() - 1
    kinds = [side.type for side in frame.side_data]
    matrix = next((bytes(side) for side in frame.side_data if side.type == SideData.DISPLAYMATRIX), None)
    warnings = [_LOST[kind] for kind in kinds if kind in _LOST]
    if frame.interlaced_frame:
        warnings.append("interlaced")
    if frame.format.name.startswith(("yuva", "rgba", "argb", "bgra", "abgr", "gbrap", "ya")):
        warnings.append("alpha-dropped")
    sar = stream.sample_aspect_ratio
    colour = Colour(int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc), int(frame.color_range))
    return {
        "stream": stream.index,
        "width": frame.width,
        "height": frame.height,
        "pixels": frame.format.name,
        "bits": max(component.bits for component in components),
        "chroma": (across, down),
        "time_base": str(stream.time_base),
        "rate": str(stream.average_rate or stream.base_rate or 25),
        "sar": str(sar) if sar else None,
        "rotation": None if matrix is None else struct.unpack("=9i", matrix[:36]),
        "colour": asdict(colour),
        "warnings": list(dict.fromkeys(warnings)),
    }


def frames(task: dict[str, Any], answers: BinaryIO) -> None:
    """Answers with frames of [start, stop): head `time`, `duration`, `damaged`; body RGB, H×W×3, 8 or 16 bits."""
    seek, start, stop = task["seek"], task["start"], task["stop"]
    found = _decoded(task, seek, answers)
    first = next(found, None)
    if seek is not None and (first is None or first.pts > start):  # the seek went too far
        found = _decoded(task, None, answers)
        first = next(found, None)
    size = None
    while first is not None:
        frame, first = first, next(found, None)
        if frame.pts < start:
            continue
        if stop is not None and frame.pts >= stop:
            break
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != tuple(task["size"]):
            at = float(frame.pts * frame.time_base)
            raise ClipError(f"changes its size to {frame.width}x{frame.height} at {at:.1f} s: cut it there")
        head = {"time": frame.pts, "duration": frame.duration or 0, "damaged": frame.is_corrupt}
        send(answers, head, _rgb(frame, task))
    send(answers, {"end": True})


def _decoded(task: dict[str, Any], seek: int | None, answers: BinaryIO) -> Iterator[Any]:
    """Frames from the key frame at or before `seek`, or from the beginning, with times that grow."""
    with open_clip(task["path"]) as container:
        stream = main_video(container)
        _bound(stream, task)
        stream.thread_count = task["threads"]
        stream.thread_type = "AUTO"
        if seek is not None:
            container.seek(seek, stream=stream)
        last = None
        for frame in _frames_of(container, stream, task["strict"], answers):
            if frame.pts is None or (last is not None and frame.pts <= last):
                frame.pts = 0 if last is None else last + max(1, frame.duration or 0)
            last = frame.pts
            yield frame


def _frames_of(
    container: InputContainer, stream: VideoStream, strict: bool, answers: BinaryIO
) -> Iterator[VideoFrame]:
    packets = container.demux(stream)
    time: int | None = None
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            time = packet.pts if packet.pts is not None else time
            if strict and packet.is_corrupt:
                raise ClipError(f"is damaged {_at(time, stream)}: --lenient takes what can be read")
            found = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            if strict:
                told = f"is damaged {_at(time, stream)} ({words(error)}): --lenient takes what can be read"
                raise ClipError(told) from None
            send(answers, {"lost": 1})
            continue
        yield from found


def _at(time: int | None, stream: VideoStream) -> str:
    return "at its beginning" if time is None else f"at {float(time * (stream.time_base or 0)):.1f} s"


def _rgb(frame: VideoFrame, task: dict[str, Any]) -> memoryview:
    """The frame's pixels, RGB of 8 or (for more bits) 16 bits, by its own matrix and range."""
    matrix = int(frame.colorspace)
    if matrix == UNSPECIFIED:
        matrix = guessed_matrix(frame.height)
    range_ = int(frame.color_range) or (FULL if frame.format.name.startswith("yuvj") else LIMITED)
    rgb = frame.reformat(
        format="rgb48le" if task["deep"] else "rgb24",
        src_colorspace=sws_matrix(matrix),
        src_color_range=range_,
        dst_color_range=FULL,
        interpolation=SCALING,
    )
    return np.ascontiguousarray(rgb.to_ndarray()).data.cast("B")


def main() -> None:
    """Does the task on stdin; whatever else is printed goes to stderr."""
    source, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(None)
    task, _ = receive(source)
    try:
        {"probe": probe, "frames": frames, "join": join}[task["task"]](task, answers)
    except ClipError as error:
        send(answers, {"error": "clip", "detail": str(error)})
    except MemoryError:
        send(answers, {"error": "clip", "detail": "takes more memory to decode than frames of its size should"})
    except BrokenPipeError:  # nobody wants more
        sys.exit(0)
    except OSError as error:
        send(answers, {"error": "system", "detail": words(error)})
    except Exception as error:  # whatever a file can do to a decoder ends here
        send(answers, {"error": "clip", "detail": f"cannot be decoded ({type(error).__name__}: {words(error)})"})


if __name__ == "__main__":
    main()
