"""Which checkpoint a run goes on from: the newest that is whole, loaded once before anything of the run changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from ray.train import Checkpoint

from ray_sr.recipes.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.training.runs import Run
from ray_sr.training.state import DamagedCheckpointError, TrainState


@dataclass(frozen=True)
class Resumable:
    """The folder name of a checkpoint that fits the recipe, and what is wrong with those that come before it."""

    name: str
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.name.rpartition("_")[2])


def find_resumable(run: Run, recipe: Recipe) -> Resumable | None:
    """The checkpoint to go on from; None where the run has none yet.

    Raises ModelError and RecipeError where it does not fit the recipe, and DamagedCheckpointError where none of
    the run's checkpoints can be read.
    """
    damaged: dict[str, str] = {}
    for name in run.checkpoints():
        try:
            _load(run, name, recipe)
        except DamagedCheckpointError as error:
            damaged[name] = str(error)
            continue
        return Resumable(name, damaged)
    if damaged:
        raise DamagedCheckpointError(f"{run.place}: no checkpoint can be read: {next(iter(damaged.values()))}")
    return None


def _load(run: Run, name: str, recipe: Recipe) -> None:
    """As a worker will, on the CPU: whether it can be read, and belongs to these networks and stages."""
    state = TrainState(recipe, Compute(torch.device("cpu"), None, torch.contiguous_format))
    filesystem, root = run.storage()
    with Checkpoint(f"{root}/{name}", filesystem).as_directory() as folder:
        state.load(Path(folder))
