"""Upscaling of animated GIF, WebP and PNG: every frame through the engine, with its transparency and its time.

The frames of the result lie as raw pixels in a hidden folder beside it until the last one is there; so a run that
was interrupted goes on where it was, and the encoders read them without holding them all.
"""

from __future__ import annotations

import base64
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from ray_sr.errors import InputError, ResourceError
from ray_sr.images import Limits, Photo, check_result_size
from ray_sr.images.savers import error_line
from ray_sr.progress import Progress
from ray_sr.storage.local import written_aside
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.upscaling.tile_results import TileResults
from ray_sr.video.apng import write_apng
from ray_sr.video.journal import Journal, fingerprint
from ray_sr.video.options import ClipOptions, ClipResult, what_stands
from ray_sr.video.processes import SILENCE_S, answers

RAW = "frames.raw"
_PROGRAM = "ray_sr.video.animation_process"


@dataclass(frozen=True)
class Facts:
    """What an animation says of itself. plays: 0 for ever."""

    width: int
    height: int
    frames: int
    plays: int
    icc: str


@dataclass(frozen=True)
class _Frames:
    """What was rendered: durations in seconds, of each frame; height and width; what was lost."""

    facts: Facts
    durations: list[Fraction]
    size: tuple[int, int]
    reused: float
    tiles_reused: float
    lost: int


def upscale_animation(
    source: Path,
    target: Path,
    engine: Engine,
    *,
    model: str = "",
    wanted: TargetSize | None = None,
    options: ClipOptions | None = None,
    quiet: bool = False,
) -> ClipResult:
    """Upscales one animation; the name of `target` says the format: .gif, .webp, .png or .apng.

    The result is there whole or not at all. What cannot be read or written is a failed result. Raises RecipeError
    where an unfinished run is there that is not to be resumed or was made otherwise.
    """
    begin, options, wanted = time.perf_counter(), options or ClipOptions(), wanted or TargetSize()
    named = str(source), str(target)
    try:
        if skipped := what_stands(target, options):
            return ClipResult(*named, *skipped)
        settings = {"model": model, "scale": engine.scale, "wanted": vars(wanted), "ensemble": engine.ensemble}
        journal = Journal(target, {"source": fingerprint(source), **settings})
        with journal.open(resume=options.resume, overwrite=options.existing == "overwrite"):
            made = _render(source, target, engine, wanted, options.limits, journal, quiet)
            _encode(made, journal.folder / RAW, target, options)
            journal.remove()
    except KeyboardInterrupt:
        print(f"{source}: interrupted: the same command with --resume goes on", file=sys.stderr, flush=True)
        raise
    except (InputError, ResourceError) as error:
        return ClipResult(*named, "failed", str(error).removeprefix(f"{source}: "))
    except OSError as error:
        return ClipResult(*named, "failed", f"{error.filename or target}: {error.strerror or error}")
    warnings = (f"damaged:{made.lost}-frames-lost",) if made.lost else ()
    seconds, size = time.perf_counter() - begin, made.size[::-1]
    shares = made.reused, made.tiles_reused
    return ClipResult(*named, "done", "", *size, seconds, warnings, None, len(made.durations), *shares)


def _render(
    source: Path,
    target: Path,
    engine: Engine,
    wanted: TargetSize,
    limits: Limits,
    journal: Journal,
    quiet: bool,
) -> _Frames:
    """Appends the missing frames to the raw file."""
    facts: Facts | None = None
    durations: list[Fraction] = []
    size, lost, reused = (0, 0), 0, 0
    engine.tile_results = engine.tile_results or TileResults()
    before = engine.stats.tiles, engine.stats.reused
    last: tuple[bytes, bytes] = b"", b""
    with (
        closing(_answers(source, limits)) as found,
        open(journal.folder / RAW, "ab") as raw,
        Progress(source.name, 1, "frames", quiet=quiet) as progress,
    ):
        done = 0
        for head, body in found:
            if "facts" in head:
                facts = Facts(**head["facts"])
                size = wanted.of(facts, engine.scale)
                check_result_size("webp" if target.suffix.lower() == ".webp" else "png", *size[::-1])
                done = _whole_frames(raw, size[0] * size[1] * 4)
                progress.expect(facts.frames)
                progress.restart(done)
            lost += head.get("lost", 0)
            if "time" not in head or facts is None:
                continue
            durations.append(Fraction(head["ms"]) / 1000)
            if head["time"] < done:
                continue
            key = TileResults.key(np.frombuffer(body, np.uint8))
            reused += key == last[0]
            if key != last[0]:
                last = key, _upscaled(bytes(body), facts, engine, wanted)
            raw.write(last[1])
            raw.flush()
            progress.advance()
    if facts is None or not durations:
        raise InputError(f"{source}: holds no frame")
    tiles = engine.stats.tiles - before[0]
    shares = reused / max(1, len(durations) - done), (engine.stats.reused - before[1]) / max(1, tiles)
    return _Frames(facts, durations, size, *shares, lost)


def _answers(source: Path, limits: Limits) -> Any:
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    bounds = {"max_pixels": limits.max_pixels, "max_side": limits.max_side, "strict": limits.strict}
    return answers({"path": str(source.absolute()), **bounds}, source, SILENCE_S, _PROGRAM)


def _whole_frames(raw: Any, frame_bytes: int) -> int:
    """How many frames are in the file; half a one at its end is cut off."""
    count = raw.tell() // frame_bytes
    raw.truncate(count * frame_bytes)
    return int(count)


def _upscaled(rgba: bytes, facts: Facts, engine: Engine, wanted: TargetSize) -> bytes:
    pixels = np.frombuffer(rgba, np.uint8).reshape(facts.height, facts.width, 4)
    alpha = None if (pixels[..., 3] == 255).all() else np.ascontiguousarray(pixels[..., 3])
    photo = Photo(np.ascontiguousarray(pixels[..., :3]), alpha)
    result = upscale_photo(photo, engine, wanted=wanted)
    opacity = np.full(result.pixels.shape[:2], 255, np.uint8) if result.alpha is None else result.alpha
    return np.dstack([result.pixels, opacity]).tobytes()


def _encode(made: _Frames, raw: Path, target: Path, options: ClipOptions) -> None:
    """The raw frames as the format of the target's name."""
    height, width = made.size
    count = len(made.durations)
    frames = np.memmap(raw, np.uint8, "r", shape=(count, height, width, 4))
    opaque = all((frame[..., 3] == 255).all() for frame in frames)
    icc = base64.b64decode(made.facts.icc) or None
    suffix = target.suffix.lower()
    try:
        with written_aside(target) as aside:
            if suffix in (".png", ".apng"):
                shown = (frame[..., :3] if opaque else frame for frame in frames)
                with aside.open("wb") as file:
                    write_apng(file, shown, made.durations, made.facts.plays, icc)
            elif suffix == ".gif":
                _strip(made, frames, opaque, icc).gifsave(str(aside), keep_duplicate_frames=True, keep="none")
            else:
                style = {"Q": options.quality, "lossless": options.lossless, "exact": True, "keep": "icc"}
                _strip(made, frames, opaque, icc).webpsave(str(aside), **style)
    except pyvips.Error as error:
        raise ResourceError(f"{target}: cannot be encoded ({error_line(error)})") from None


def _strip(made: _Frames, frames: np.ndarray, opaque: bool, icc: bytes | None) -> pyvips.Image:
    """All frames below each other, as libvips has animations; they are read from the file as they are needed."""
    height, width = made.size
    rows = height * len(made.durations)
    image = pyvips.Image.new_from_memory(frames.data, width, rows, 4, "uchar").copy(interpretation="srgb")
    image = (image[:3] if opaque else image).copy()
    delays = [round(duration * 1000) for duration in made.durations]
    image.set_type(pyvips.GValue.gint_type, "page-height", height)
    image.set_type(pyvips.GValue.array_int_type, "delay", delays)
    image.set_type(pyvips.GValue.gint_type, "loop", made.facts.plays)
    if icc:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", icc)
    return image
