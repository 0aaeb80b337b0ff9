"""How long will it take? A few steps of each stage, measured, and carried to the whole run."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ray_sr.progress import clock
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import STORAGE
from ray_sr.training.launch import train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run

STEPS = 50
LOG_EVERY = 5
WARM_UP = 10  # the first steps wait for the data plane to start and for kernels to be chosen
DATA_IS_THE_LIMIT = 0.2


@dataclass(frozen=True)
class StagePlan:
    """A stage as measured: steps/s, share of the time spent waiting for data, peak memory of a worker."""

    stage: str
    steps: int
    steps_per_s: float
    data_wait: float
    memory_gib: float

    @property
    def seconds(self) -> float:
        return self.steps / self.steps_per_s

    @property
    def limit(self) -> str:
        return "data" if self.data_wait > DATA_IS_THE_LIMIT else "compute"


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will take; validations and checkpoints come on top of the seconds of its steps."""

    stages: list[StagePlan]
    workers: int
    units: float
    compute: str
    hourly: float | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Price of all workers for that time; `hourly` is that of a unit: a GPU, or on CPUs a worker."""
        return None if self.hourly is None else self.seconds / 3600 * self.units * self.hourly

    def __str__(self) -> str:
        lines = [f"{self.workers} worker(s) on {self.compute}"]
        lines += [
            f"{stage.stage:9} {stage.steps:>9,} steps at {stage.steps_per_s:.2f}/s: {clock(stage.seconds)}; "
            f"{stage.memory_gib:.1f} GiB a worker; waits for data {100 * stage.data_wait:.0f} % of the time, "
            f"{stage.limit} is the limit"
            for stage in self.stages
        ]
        price = (
            "" if self.cost is None else f", {self.cost:.2f} at {self.hourly:g} an hour for each of {self.units:g}"
        )
        return "\n".join([*lines, f"in all    {clock(self.seconds)}{price} (validation and checkpoints on top)"])


def plan(
    recipe: Recipe,
    *,
    shards: str | None = None,
    hourly: float | None = None,
    listen: Callable[[Record], None] = lambda record: None,
) -> TrainingPlan:
    """Measure up to 50 steps of each stage in a temporary run; Ray must be running."""
    short = _shortened(recipe)
    with _temporary_run() as run:
        train(short, run, shards=shards, listen=listen)
        records, start = run.records("train"), run.records("start")[-1]
    stages = [
        _measured(name, stage.steps, [record for record in records if record["stage"] == name])
        for name, stage in (("pretrain", recipe.pretrain), ("gan", recipe.gan))
        if stage
    ]
    workers = recipe.training.workers
    units = workers if start["compute"].startswith("CPU") else workers * recipe.training.gpus_per_worker
    return TrainingPlan(stages, workers, units, start["compute"], hourly)


@contextmanager
def _temporary_run() -> Iterator[Run]:
    """A run below RAY_SR_STORAGE, which all nodes reach; without that, in a folder of this machine."""
    if STORAGE not in os.environ:
        with tempfile.TemporaryDirectory(prefix="ray-sr-plan-") as folder:
            yield Run.at(Path(folder) / "plan")
        return
    run = Run.at(f".plan-{uuid.uuid4().hex[:8]}")
    try:
        yield run
    finally:
        filesystem, path = run.storage()
        filesystem.delete_dir(path)
        shutil.rmtree(run.folder, ignore_errors=True)


def _shortened(recipe: Recipe) -> Recipe:
    changes = {
        name: stage.model_copy(update={"steps": min(stage.steps, STEPS)})
        for name, stage in (("pretrain", recipe.pretrain), ("gan", recipe.gan))
        if stage
    }
    training = recipe.training.model_copy(
        update={"log_every": LOG_EVERY, "checkpoint_every": 10 * STEPS, "trackers": []}
    )
    validation = recipe.validation.model_copy(update={"photos": 0})
    return recipe.model_copy(update={**changes, "training": training, "validation": validation})


def _measured(name: str, steps: int, records: list[Record]) -> StagePlan:
    first = records[0]["step"] - LOG_EVERY
    warm = [record for record in records if record["step"] - first > WARM_UP] or records[-1:]
    return StagePlan(
        name,
        steps,
        median(record["steps_per_s"] for record in warm),
        median(record["data_wait"] for record in warm),
        max(record["memory_gib"] for record in records),
    )
