"""Segments and the other streams of their source into one file, without encoding anything again.

Runs in the decoder process, since it reads the source.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.error
from av.container import InputContainer, OutputContainer
from av.stream import Stream

from ray_sr.video.clip import Colour
from ray_sr.video.containers import ClipError, main_video, open_clip
from ray_sr.video.encoding import set_colour
from ray_sr.video.messages import send

_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"}
_OWN_TAGS |= {"bps", "duration", "number_of_frames", "number_of_bytes"}
_REPORT_EVERY = 500  # packets


def join(task: dict[str, Any], answers: BinaryIO) -> None:
    """Writes `target` of segments and the source's other streams; answers with warnings.

    task: path of the source, stream, target, format, segments (path, SegmentNotes as a dict), encoding,
    rotation, keep_metadata.
    """
    options = {"movflags": "+faststart"} if task["format"] in ("mp4", "mov") else {}
    warnings: list[str] = []
    with (
        open_clip(task["path"]) as source,
        av.open(f"file:{task['target']}", "w", format=task["format"], options=options) as target,
    ):
        video = _add_video(target, task)
        source_video = main_video(source)
        copies = _add_copies(source, target, source_video, task, warnings)
        if task["keep_metadata"]:
            target.metadata.update(_tags(source))
            video.metadata.update(_tags(source_video))
        if source.chapters():
            target.set_chapters(source.chapters())
        try:
            target.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise ClipError(f"{task['format']} cannot hold what it carries ({error}): name a .mkv") from None
        _mux(target, _video_packets(task, video), _other_packets(source, copies), answers)
    if task["keep_metadata"]:
        warnings += _lost_tags(task)
    send(answers, {"end": True, "warnings": list(dict.fromkeys(warnings))})


def check_holds(source: InputContainer, video: Stream, format: str) -> None:
    """Raises ClipError where a container of this format cannot take the source's sound as it is."""
    with av.open("file:/dev/null", "w", format=format) as target:
        _add_copies(source, target, video, {"format": format, "keep_metadata": False}, [])


def _add_video(target: OutputContainer, task: dict[str, Any]) -> Any:
    with av.open(f"file:{task['segments'][0][0]}", "r", format="nut") as first:
        video: Any = target.add_stream_from_template(first.streams.video[0], opaque=True)
        encoding = task["encoding"]
        set_colour(video.codec_context, Colour(**encoding["colour"]))
        if encoding["sar"] != "None":
            video.codec_context.sample_aspect_ratio = Fraction(encoding["sar"])
        video.time_base = Fraction(encoding["time_base"])
        video.codec_context.framerate = Fraction(encoding["rate"])
        if task["rotation"]:
            video.set_display_matrix(task["rotation"])
    return video


def _add_copies(
    source: InputContainer, target: OutputContainer, video: Stream, task: dict[str, Any], warnings: list[str]
) -> dict[int, Stream]:
    """Streams of the result for those of the source that are copied, by the source's index."""
    copies: dict[int, Stream] = {}
    for stream in source.streams:
        if stream.index == video.index:
            continue
        if stream.type == "data":
            # QuickTime lists chapters and the time code as tracks too, which the muxer writes anew.
            if not (source.chapters() or "timecode" in stream.metadata):
                warnings.append("data-stream-dropped")
            continue
        try:
            copy = target.add_stream_from_template(stream, opaque=True)
        except (ValueError, av.error.FFmpegError):
            if stream.type == "audio":
                name = stream.codec_context.name if stream.codec_context else "unknown"
                raise ClipError(
                    f"{task['format']} does not hold its sound ({name}) as it is: name a .mkv for the result"
                ) from None
            warnings.append(f"{stream.type}-dropped")
            continue
        if task["keep_metadata"] or "language" in stream.metadata:
            kept = _tags(stream) if task["keep_metadata"] else {"language": stream.metadata["language"]}
            copy.metadata.update(kept)
        copy.disposition = stream.disposition
        if stream.type != "attachment":
            copies[stream.index] = copy
    return copies


def _tags(place: InputContainer | Stream) -> dict[str, str]:
    """Metadata that its owner gave, not what the muxer noted for itself."""
    names = [
        name for name in place.metadata if name.lower() not in _OWN_TAGS and not name.startswith("_STATISTICS")
    ]
    return {name: place.metadata[name] for name in names}


def _lost_tags(task: dict[str, Any]) -> list[str]:
    with open_clip(task["path"]) as source, av.open(f"file:{task['target']}") as target:
        there = {name.lower() for name in target.metadata}
        return [f"metadata-dropped:{name}" for name in _tags(source) if name.lower() not in there]


def _video_packets(task: dict[str, Any], video: Stream) -> Iterator[Any]:
    """The packets of all segments in decoding order, with the times of the source's frames."""
    base = Fraction(task["encoding"]["time_base"])
    notes = [notes for _, notes in task["segments"]]
    times = [time for note in notes for time in note["times"]]
    delay = max(note["delay"] for note in notes)
    step = max(1, times[1] - times[0]) if len(times) > 1 else 1
    length = _length(task, times, notes[-1]["last_duration"], base)
    order = 0
    for path, note in task["segments"]:
        with open_segment(path) as container:
            packets: list[Any] = [packet for packet in container.demux(video=0) if packet.pts is not None]
        shift = min(note["times"]) - min(round(packet.pts * packet.time_base / base) for packet in packets)
        for packet in packets:
            shown = round(packet.pts * packet.time_base / base) + shift
            place = bisect_left(times, shown)
            following = times[place + 1] if place + 1 < len(times) else shown + note["last_duration"]
            packet.time_base = base
            packet.pts, packet.duration = shown, following - shown
            packet.dts = times[order - delay] if order >= delay else times[0] - (delay - order) * step
            packet.stream = video
            order += 1
            if order == len(times) and task["format"] in ("mp4", "mov"):
                # These add up the steps of decoding times to the length of the track.
                packet.duration = max(1, length - (packet.dts - times[0] + delay * step))
            yield packet


def _length(task: dict[str, Any], times: list[int], last_duration: int, base: Fraction) -> int:
    """From the first frame to the end of the last, as the source has it, in units of the time base."""
    shown = times[-1] + last_duration - times[0]
    with open_clip(task["path"]) as source:
        stream = main_video(source)
        if stream.duration is None or stream.time_base != base:
            return shown
        known = stream.duration + (stream.start_time or 0) - times[0]
    return known if times[-1] - times[0] < known <= shown + 2 / base else shown


def open_segment(path: str) -> InputContainer:
    return av.open(f"file:{path}", "r", format="nut")


def _other_packets(source: InputContainer, copies: dict[int, Stream]) -> Iterator[Any]:
    if not copies:
        return
    for packet in source.demux([stream for stream in source.streams if stream.index in copies]):
        if packet.dts is None and packet.pts is None:
            continue
        packet.dts = packet.pts if packet.dts is None else packet.dts
        packet.stream = copies[packet.stream_index]
        yield packet


def _mux(target: OutputContainer, video: Iterator[Any], others: Iterator[Any], answers: BinaryIO) -> None:
    """Packets of both in the order of their times."""
    waiting = next(others, None)
    for count, packet in enumerate(video):
        while waiting is not None and _seconds(waiting) <= _seconds(packet):
            target.mux(waiting)
            waiting = next(others, None)
        target.mux(packet)
        if count % _REPORT_EVERY == 0:
            send(answers, {"at": count})
    while waiting is not None:
        target.mux(waiting)
        waiting = next(others, None)


def _seconds(packet: Any) -> Fraction:
    return packet.dts * packet.time_base
