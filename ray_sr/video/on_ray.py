"""Clips on a Ray cluster: segments are the rows of a data set, each rendered by an engine on some node.

A segment is the same wherever it is rendered, so the joined file is that of one machine, and a job that was killed
goes on, here or there, with the segments that are done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_sr.cluster import require_shared
from ray_sr.errors import ClusterError, InputError, RecipeError, ResourceError
from ray_sr.progress import Progress
from ray_sr.storage import first_line
from ray_sr.store import Model
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions
from ray_sr.upscaling.on_ray import engine_resources
from ray_sr.upscaling.record import FileState, ResultRecord
from ray_sr.upscaling.results import FileResult
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.animations import upscale_animation
from ray_sr.video.clip import Segment
from ray_sr.video.clips import ClipPlan, run_clip
from ray_sr.video.inputs import MovingJob, clip_options, refused
from ray_sr.video.journal import Journal
from ray_sr.video.options import ClipResult
from ray_sr.video.rendering import FrameUpscaler, render_segments


def upscale_clips_on_ray(
    jobs: Sequence[MovingJob],
    model: Model,
    *,
    wanted: TargetSize,
    options: FileOptions,
    choices: dict[str, Any],
    engine_options: dict[str, Any],
    workers: int | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    report: Callable[[FileResult], None] = lambda result: None,
) -> Iterator[ClipResult]:
    """Upscales animations, each on one node, and clips one after the other, each on the whole cluster.

    Ray must be running. Sources and results lie in folders that all nodes reach. Options as for
    `ray_sr.video.inputs.upscale_moving` and `ray_sr.upscaling.on_ray.upscale_archive`. Raises ClusterError where
    Ray fails.
    """
    chosen = clip_options(options, **choices)
    engine = Engine(model.module, model.capability, **{**engine_options, "device": "cpu"})  # checks the options

    def render(
        plan: ClipPlan, journal: Journal, missing: Sequence[Segment], progress: Progress
    ) -> dict[str, float]:
        return _render(plan, journal, missing, progress, model, engine_options, workers)

    settings = {"precision": engine.precision, "ensemble": engine.ensemble}
    made_by = {"model": f"{model.name}@{model.version}", "scale": engine.scale, "device": _device(engine_options)}
    common: dict[str, Any] = {"wanted": wanted, "options": chosen, "quiet": quiet}
    if dry_run:
        yield from (ClipResult(str(job.source), str(job.target), "planned") for job in jobs)
        return
    states = {job: FileState.of(job.source) for job in jobs}
    if animations := [job for job in jobs if job.is_animation]:
        for job, result in _animations(animations, model, engine_options, workers, common):
            _note(job, states[job], result)
            report(result)
            yield result
    for job in jobs:
        if job.is_animation:
            continue
        places = job.source.absolute(), job.target.absolute()
        try:
            result = run_clip(*places, engine.scale, render, {**made_by, **settings}, **common)
        except RecipeError as error:
            if len(jobs) == 1:
                raise
            result = refused(job, error)
        _note(job, states[job], result)
        report(result)
        yield result


def _note(job: MovingJob, state: FileState | None, result: ClipResult) -> None:
    """A result beside its source is none of the sources of the next run over their folder."""
    if result.status == "done" and state is not None:
        ResultRecord(job.target.parent).add(job.target, job.source, state)


def _device(engine_options: dict[str, Any]) -> str:
    from ray_sr.cluster import capacity

    wanted = str(engine_options.get("device", "auto"))
    return "cuda" if wanted != "cpu" and capacity().get("GPU", 0) else "cpu"


def _render(
    plan: ClipPlan,
    journal: Journal,
    missing: Sequence[Segment],
    progress: Progress,
    model: Model,
    engine_options: dict[str, Any],
    workers: int | None,
) -> dict[str, float]:
    """Has the cluster render what is missing."""
    import ray

    require_shared(str(plan.source), str(journal.folder / "job.json"))
    resources, count = engine_resources(workers, str(engine_options.get("device", "auto")), len(missing))
    rows = [{"number": segment.number} for segment in missing]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Renderer,
        fn_constructor_kwargs={
            "model": ray.put((model.module, model.capability)),
            "plan": ray.put(plan),
            "engine_options": engine_options,
            "gpu": bool(resources.get("num_gpus")),
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=count),
        **resources,
    )
    totals: dict[str, int] = dict.fromkeys(("frames", "frames_reused", "tiles", "tiles_reused"), 0)
    start, begin = progress.count, time.monotonic()
    try:
        for row in dataset.iter_rows():
            if row["error"]:
                kind = InputError if row["to_blame"] == "clip" else ResourceError
                raise kind(row["error"])
            totals = {name: total + row[name] for name, total in totals.items()}
            rate = totals["frames"] / max(1e-9, time.monotonic() - begin)
            progress.update(start + totals["frames"], f"{rate:.2f} frames/s")
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the clip's job failed: {first_line(error)}; --resume goes on with it") from None
    return {
        "frames_reused": totals["frames_reused"] / max(1, totals["frames"]),
        "tiles_reused": totals["tiles_reused"] / max(1, totals["tiles"]),
    }


def _animations(
    jobs: Sequence[MovingJob],
    model: Model,
    engine_options: dict[str, Any],
    workers: int | None,
    common: dict[str, Any],
) -> Iterator[tuple[MovingJob, ClipResult]]:
    """Has each animation made by one node, as its frames build on each other; in the order that they are done."""
    import ray

    there = [str(job.source.absolute()) for job in jobs if job.source.is_file()]
    for job in jobs:
        try:
            job.target.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{job.target.parent}: cannot be made ({error.strerror or error})") from None
    require_shared(*there[:1], str(jobs[0].target.absolute().parent))
    resources, count = engine_resources(workers, str(engine_options.get("device", "auto")), len(jobs))
    places = [(str(job.source.absolute()), str(job.target.absolute())) for job in jobs]
    rows = [{"number": number, "source": place[0], "target": place[1]} for number, place in enumerate(places)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Animator,
        fn_constructor_kwargs={
            "model": ray.put((model.module, model.capability)),
            "name": f"{model.name}@{model.version}",
            "engine_options": engine_options,
            "common": {**common, "quiet": True},
            "gpu": bool(resources.get("num_gpus")),
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=count),
        **resources,
    )
    try:
        for row in dataset.iter_rows():
            job, fields = jobs[row["number"]], json.loads(row["result"])
            named = {"source": str(job.source), "target": str(job.target), "warnings": tuple(fields["warnings"])}
            yield job, ClipResult(**{**fields, **named})
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the animations' job failed: {first_line(error)}; --resume goes on with it") from None


class _Animator:
    """The actor: holds an engine and makes animations."""

    def __init__(
        self, model: Any, name: str, engine_options: dict[str, Any], common: dict[str, Any], gpu: bool
    ) -> None:
        import ray

        module, capability = ray.get(model)
        device = engine_options.get("device", "auto") if gpu else "cpu"
        self._engine = Engine(module, capability, **{**engine_options, "device": device})
        self._common = {**common, "model": name}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        couples = zip(batch["source"].tolist(), batch["target"].tolist(), strict=True)
        made = [self._one(MovingJob(Path(source), Path(target))) for source, target in couples]
        return {"number": batch["number"].tolist(), "result": [json.dumps(asdict(result)) for result in made]}

    def _one(self, job: MovingJob) -> ClipResult:
        try:
            return upscale_animation(job.source, job.target, self._engine, **self._common)
        except RecipeError as error:
            return refused(job, error)


class _Renderer:
    """The actor: holds an engine and renders segments."""

    def __init__(self, model: Any, plan: Any, engine_options: dict[str, Any], gpu: bool) -> None:
        import ray

        module, capability = ray.get(model)
        device = engine_options.get("device", "auto") if gpu else "cpu"
        self._plan: ClipPlan = ray.get(plan)
        self._engine = Engine(module, capability, **{**engine_options, "device": device})
        self._upscaler = FrameUpscaler(self._engine, self._plan.size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        answers = [self._one(int(number)) for number in batch["number"]]
        return {name: [answer[name] for answer in answers] for name in answers[0]}

    def _one(self, number: int) -> dict[str, Any]:
        plan, stats = self._plan, self._engine.stats
        journal = Journal(plan.target, {})
        segment = plan.segments[number]
        before = replace(stats), self._upscaler.frames_reused
        answer: dict[str, Any] = {"error": "", "to_blame": ""}
        try:
            if journal.notes(segment) is None:  # another try of a task whose actor was lost may have done it
                places = [(segment, journal.path(segment))]
                limits = plan.options.limits
                render_segments(plan.source, plan.info, places, plan.encoding, self._upscaler, limits)
        except (InputError, ResourceError) as error:
            blamed = "clip" if isinstance(error, InputError) else "system"
            answer = {"error": str(error), "to_blame": blamed}
        notes = journal.notes(segment)
        counts = {"frames": len(notes.times) if notes else 0, "tiles": stats.tiles - before[0].tiles}
        reused = self._upscaler.frames_reused - before[1]
        return {**answer, **counts, "frames_reused": reused, "tiles_reused": stats.reused - before[0].reused}
