"""Upscaling of clips: every frame through the engine, everything else carried along."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.progress import Progress
from ray_sr.storage.local import written_aside
from ray_sr.upscaling import Engine
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.clip import RESULT_SUFFIXES, ClipInfo, Segment, SegmentNotes, plan_segments
from ray_sr.video.encoding import Encoding, choose_encoding
from ray_sr.video.journal import Journal, fingerprint
from ray_sr.video.options import ClipOptions, ClipResult, what_stands
from ray_sr.video.processes import answers, probe_clip
from ray_sr.video.rendering import FrameUpscaler, render_segments


@dataclass(frozen=True)
class ClipPlan:
    """All that rendering needs to know, on whatever machine."""

    source: Path
    target: Path
    info: ClipInfo
    encoding: Encoding
    segments: tuple[Segment, ...]
    options: ClipOptions

    @property
    def size(self) -> tuple[int, int]:
        return self.encoding.height, self.encoding.width


Render = Callable[[ClipPlan, Journal, Sequence[Segment], Progress], dict[str, float]]


def plan_clip(source: Path, target: Path, scale: int, wanted: TargetSize, options: ClipOptions) -> ClipPlan:
    """Looks at the source. scale: of the network. Raises InputError and RecipeError, one line each."""
    container = RESULT_SUFFIXES.get(target.suffix.lower())
    if container is None:
        raise RecipeError(f"{target}: a clip's name must end in one of {', '.join(RESULT_SUFFIXES)}")
    info = probe_clip(source, options.limits, container)
    height, width = wanted.of(info, scale)
    size = _even(height), _even(width)
    encoding = choose_encoding(info, size, container, options.codec, options.crf)
    return ClipPlan(source, target, info, encoding, tuple(plan_segments(info)), options)


def _even(side: int) -> int:
    """4:2:0 has a sample of colour for two pixels: sides are even."""
    return max(2, side + side % 2)


def upscale_clip(
    source: Path,
    target: Path,
    engine: Engine,
    *,
    model: str = "",
    wanted: TargetSize | None = None,
    options: ClipOptions | None = None,
    quiet: bool = False,
) -> ClipResult:
    """Upscales one clip on this machine. The result is there whole or not at all.

    What has been done stays in a hidden folder beside it until then, for `options.resume`. A clip that cannot be
    read is a failed result; RecipeError is raised for options that do not fit.
    """

    def render(
        plan: ClipPlan, journal: Journal, missing: Sequence[Segment], progress: Progress
    ) -> dict[str, float]:
        upscaler = FrameUpscaler(engine, plan.size)
        before, begin = (engine.stats.tiles, engine.stats.reused), time.monotonic()
        done = [progress.count, 0]

        def advance() -> None:
            done[1] += 1
            progress.update(done[0] + done[1], f"{done[1] / max(1e-9, time.monotonic() - begin):.2f} frames/s")

        places = [(segment, journal.path(segment)) for segment in missing]
        render_segments(source, plan.info, places, plan.encoding, upscaler, plan.options.limits, advance)
        tiles, reused = engine.stats.tiles - before[0], engine.stats.reused - before[1]
        return {"frames_reused": upscaler.frames_reused / max(1, done[1]), "tiles_reused": reused / max(1, tiles)}

    settings = {"device": engine.device.type, "precision": engine.precision, "ensemble": engine.ensemble}
    made_by = {"model": model, "scale": engine.scale, **settings}
    return run_clip(source, target, engine.scale, render, made_by, wanted=wanted, options=options, quiet=quiet)


def run_clip(
    source: Path,
    target: Path,
    scale: int,
    render: Render,
    made_by: dict[str, Any],
    *,
    wanted: TargetSize | None = None,
    options: ClipOptions | None = None,
    quiet: bool = False,
) -> ClipResult:
    """What `upscale_clip` does, with the missing segments rendered by whoever `render` asks."""
    begin, options = time.perf_counter(), options or ClipOptions()
    named = str(source), str(target)
    try:
        if skipped := what_stands(target, options):
            return ClipResult(*named, *skipped)
        plan = plan_clip(source, target, scale, wanted or TargetSize(), options)
        journal = Journal(target, _made_with(plan, made_by))
        with journal.open(resume=options.resume, overwrite=options.existing == "overwrite"):
            shares: dict[str, Any] = _render(plan, journal, render, quiet)
            notes, warnings = _join(plan, journal)
            journal.remove()
    except KeyboardInterrupt:
        print(f"{source}: interrupted: the same command with --resume goes on", file=sys.stderr, flush=True)
        raise
    except (InputError, ResourceError) as error:
        return ClipResult(*named, "failed", str(error).removeprefix(f"{source}: "))
    except OSError as error:
        return ClipResult(*named, "failed", f"{target}: cannot be written ({error.strerror or error})")
    seconds = time.perf_counter() - begin
    frames = sum(len(note.times) for note in notes)
    size = plan.encoding.width, plan.encoding.height
    return ClipResult(*named, "done", "", *size, seconds, warnings, None, frames, **shares)


def _made_with(plan: ClipPlan, made_by: dict[str, Any]) -> dict[str, Any]:
    segments = [(segment.start, segment.stop) for segment in plan.segments]
    return {
        "source": fingerprint(plan.source),
        **made_by,
        "encoding": plan.encoding.to_dict(),
        "segments": segments,
    }


def _render(plan: ClipPlan, journal: Journal, render: Render, quiet: bool) -> dict[str, float]:
    finished = [notes for segment in plan.segments if (notes := journal.notes(segment))]
    missing = [segment for segment in plan.segments if journal.notes(segment) is None]
    done = sum(len(notes.times) for notes in finished)
    if not missing:
        return {}
    with Progress(plan.source.name, max(1, len(plan.info.times)), "frames", quiet=quiet, start=done) as progress:
        if done:
            progress.say(f"{plan.source}: going on after {done} frames")
        return render(plan, journal, missing, progress)


def _join(plan: ClipPlan, journal: Journal) -> tuple[list[SegmentNotes], tuple[str, ...]]:
    """Joins all segments with the source's other streams into the result."""
    parts = []
    for segment in plan.segments:
        notes = journal.notes(segment)
        if notes is None:
            raise ResourceError(f"{journal.path(segment)}: is gone: run it again with --resume")
        if notes.times:
            parts.append((str(journal.path(segment)), notes))
    if not parts:
        raise InputError("holds no frame that can be decoded")
    task = {
        "task": "join",
        "path": str(plan.source.absolute()),
        "format": RESULT_SUFFIXES[plan.target.suffix.lower()],
        "segments": [(path, asdict(notes)) for path, notes in parts],
        "encoding": plan.encoding.to_dict(),
        "rotation": plan.info.rotation,
        "keep_metadata": plan.options.keep_metadata,
    }
    warnings = [*plan.info.warnings]
    with written_aside(plan.target) as aside:
        for head, _ in answers({**task, "target": str(aside.absolute())}, plan.source):
            warnings += head.get("warnings", [])
    if lost := sum(notes.lost for _, notes in parts):
        warnings.append(f"damaged:{lost}-packets-lost")
    return [notes for _, notes in parts], tuple(dict.fromkeys(warnings))
