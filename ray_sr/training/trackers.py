"""Sends the journal's figures to experiment trackers: TensorBoard, Weights & Biases, MLflow.

Each stage is a run of its own in W&B and MLflow, called `Generator_pretrain` and `SRGAN_training`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray_sr.errors import ResourceError
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.training import TrackerName
from ray_sr.training.monitor import Record

STAGE_TITLES = {"pretrain": "Generator_pretrain", "gan": "SRGAN_training"}
_NOT_FIGURES = {"event", "step", "stage"}


class Tracker(Protocol):
    """Takes figures of a stage's step; closed when the run ends."""

    def log(self, stage: str, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All trackers of a run: a listener of the journal."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._trackers: list[Tracker] = [_KINDS[name](recipe, folder) for name in recipe.training.trackers]

    def hear(self, record: Record) -> None:
        """Pass on the figures of train and validation records."""
        if record["event"] not in ("train", "validation"):
            return
        prefix = "val/" if record["event"] == "validation" else "train/"
        figures = {prefix + name: float(value) for name, value in record.items() if name not in _NOT_FIGURES}
        for tracker in self._trackers:
            tracker.log(record["stage"], record["step"], figures)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check_trackers(names: Sequence[TrackerName]) -> None:
    """ResourceError where a tracker's package is not installed, before any work."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ResourceError(f"training.trackers {name}: {_PACKAGES[name]} is not installed: pip install {name}")


class _TensorBoard:
    def __init__(self, recipe: Recipe, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writers = {
            stage: SummaryWriter(str(folder / "tensorboard" / title)) for stage, title in STAGE_TITLES.items()
        }

    def log(self, stage: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _WandB:
    """One W&B run a stage; WANDB_MODE=offline keeps them in the run's folder."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._wandb = importlib.import_module("wandb")
        self._recipe, self._folder = recipe, folder
        self._stage = ""
        self._run: Any = None

    def log(self, stage: str, step: int, figures: dict[str, float]) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._run = self._wandb.init(
                project="ray-sr",
                group=f"{self._recipe.name}-{self._folder.name}",
                name=STAGE_TITLES[stage],
                dir=str(self._folder),
                config=self._recipe.dump(),
            )
        self._run.log(figures, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


class _MLflow:
    """One MLflow run a stage, in the experiment of the recipe's name."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(recipe.name)
        self._stage = ""

    def log(self, stage: str, step: int, figures: dict[str, float]) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._mlflow.start_run(run_name=STAGE_TITLES[stage])
        self._mlflow.log_metrics(figures, step=step)

    def close(self) -> None:
        if self._stage:
            self._mlflow.end_run()


_KINDS: dict[str, Callable[[Recipe, Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
