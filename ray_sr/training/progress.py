"""Shows a run on stderr: a bar or lines with steps/s, losses, PSNR and data wait; validations as lines."""

from __future__ import annotations

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
            case "facts":
                self._progress.say(
                    f"{self._recipe.name}: {self._recipe.generator.kind} x{self._recipe.scale}, "
                    f"{self._recipe.total_steps} steps on {record['cpus']:g} CPUs, {record['gpus']:g} GPUs; "
                    "workers are starting"
                )
                if "starts_from" in record:
                    self._progress.say(f"starts from the weights of {record['starts_from']}")
            case "start":
                self._progress.restart(record["step"])
                kept = "kept in memory" if record["cached"] else "streamed"
                self._progress.say(
                    f"step {record['step']}: {record['world']} worker(s) on {record['compute']}; "
                    f"{record['sub_images']} sub-images {kept}, crops made in {record.get('degrade_in', 'tasks')}"
                )
                for file, reason in record.get("skipped", {}).items():
                    self._progress.say(f"left out: damaged shard {file}: {reason}")
            case "train":
                self._progress.update(record["step"], self._note(record))
            case "validation":
                self._psnr = f"PSNR-Y {record['psnr_y']:.2f}"
                self._progress.say(
                    f"step {record['step']}: {self._psnr} dB (bicubic {record['bicubic_psnr_y']:.2f}), "
                    f"RGB {record['psnr_rgb']:.2f}"
                )
            case "notice":
                left = "" if record["seconds"] is None else f" in {record['seconds']:.0f} s"
                nodes = f"{record['nodes']} node(s) will go{left}"
                self._progress.say(f"step {record['step']}: {nodes}: a checkpoint is saved before")
            case "waiting":
                self._progress.say("nothing for a minute and no CPU of the cluster is free: it waits, or is slow")
            case "stopping":
                self._progress.say("stopping: a checkpoint is saved first (again: stop at once)")

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
