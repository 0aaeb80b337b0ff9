"""Shows a run on stderr: a bar or lines with steps/s, losses, PSNR and data wait; validations as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from ray_sr.progress import Progress
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.monitor import Record


class TrainingProgress:
    """Turns the journal's records into progress. Use as a context manager."""

    def __init__(self, recipe: Recipe, *, quiet: bool = False) -> None:
        self._recipe = recipe
        self._progress = Progress(recipe.name, recipe.total_steps, "steps", quiet=quiet)
        self._psnr = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def hear(self, record: Record) -> None:
        """Show one record of the journal."""
        match record["event"]:
            case "train":
                self._progress.update(record["step"], self._note(record))
            case "facts":
                self._lines(self._facts(record))
            case "resumed":
                self._lines(self._resumed(record))
            case "start":
                self._progress.restart(record["step"])
                self._lines(self._start(record))
            case "validation":
                self._psnr = f"PSNR-Y {record['psnr_y']:.2f}"
                self._lines(
                    [
                        f"step {record['step']}: {self._psnr} dB (bicubic {record['bicubic_psnr_y']:.2f}), "
                        f"RGB {record['psnr_rgb']:.2f}"
                    ]
                )
            case event:
                self._lines(self._happening(event, record))

    def _lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._progress.say(line)

    def _facts(self, record: Record) -> Iterator[str]:
        yield (
            f"{self._recipe.name}: {self._recipe.generator.kind} x{self._recipe.scale}, "
            f"{self._recipe.total_steps} steps on {record['cpus']:g} CPUs, {record['gpus']:g} GPUs; "
            "workers are starting"
        )
        if "starts_from" in record:
            yield f"starts from the weights of {record['starts_from']}"
        if self._recipe.validation.photos and not record.get("held_out", True):
            yield (
                "no photo is held out: nothing will be measured, no best generator kept "
                "(`ray-sr data prepare --validation 0.1`)"
            )

    def _resumed(self, record: Record) -> Iterator[str]:
        for name, reason in record["damaged"].items():
            yield f"{name} cannot be read, going on from the one before: {reason}"
        if "data_digest" in record["changed"]:
            held_out = "held_out_digest" in record["changed"]
            what = "other held-out photos: best/ begins anew" if held_out else "other photos to train on"
            was = record["changed"]["data_digest"][:8]
            yield f"these are not the shards that the run began with (digest {was}): {what}"

    def _start(self, record: Record) -> Iterator[str]:
        kept = "kept in memory" if record["cached"] else "streamed"
        yield (
            f"step {record['step']}: {record['world']} worker(s) on {record['compute']}; "
            f"{record['sub_images']} sub-images {kept}, crops made in {record.get('degrade_in', 'tasks')}"
        )
        for file, reason in record.get("skipped", {}).items():
            yield f"left out: damaged shard {file}: {reason}"

    def _happening(self, event: str, record: Record) -> Iterator[str]:
        match event:
            case "notice":
                left = "" if record["seconds"] is None else f" in {record['seconds']:.0f} s"
                nodes = f"{record['nodes']} node(s) will go{left}"
                yield f"step {record['step']}: {nodes}: a checkpoint is saved before"
            case "too_small":
                yield f"{record['photos']} held-out photo(s) are too small to be measured at x{self._recipe.scale}"
            case "left_out":
                yield (
                    f"step {record['step']}: no checkpoint, the former one is still being written; checkpoints are "
                    "taken as fast as they can be (training.checkpoint_every asks for more)"
                )
            case "waiting":
                yield "nothing for a minute and no CPU of the cluster is free: it waits, or is slow"
            case "stopping":
                yield "stopping: a checkpoint is saved first (again: stop at once)"

    def _note(self, record: Record) -> str:
        parts = [f"{record['steps_per_s']:.2f} steps/s", f"g {record['g_total']:.4g}"]
        if "d_loss" in record:
            parts.append(f"d {record['d_loss']:.3f}")
        if self._psnr:
            parts.append(self._psnr)
        if record["bad_steps"]:
            parts.append(f"{record['bad_steps']:.0f} steps not finite")
        parts.append(f"data wait {100 * record['data_wait']:.0f} %")
        return ", ".join(parts)
