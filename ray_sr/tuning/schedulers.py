"""Who ends or changes trials early: ASHA and population based training, as our trials want them.

A decision to stop is left as a file for the trial (see `trial`), never carried out on its actor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from ray_sr.recipes.recipe import Recipe
from ray_sr.tuning.folder import SweepFolder
from ray_sr.tuning.space import Space

Course = Sequence[tuple[int, float]]  # step and objective of each validation


def make_scheduler(space: Space, recipe: Recipe, sweep: SweepFolder, past: Mapping[int, Course]) -> TrialScheduler:
    """The space's scheduler. `past`: the courses of trials that ended in earlier sessions, by number."""
    steps, every = recipe.total_steps, recipe.validation.every
    if space.scheduler.kind == "asha":
        grace = space.scheduler.grace or max(every, round(steps / space.scheduler.reduction**2))
        return FileASHA(sweep, steps, grace, space.scheduler.reduction, past)
    if space.scheduler.kind == "pbt":
        return FolderPBT(space, space.scheduler.interval or max(every, steps // 8))
    return FIFOScheduler()


class FileASHA(ASHAScheduler):
    """Asynchronous successive halving over the reported step (not Tune's iteration: that restarts with a trial)."""

    def __init__(
        self, sweep: SweepFolder, steps: int, grace: int, reduction: float, past: Mapping[int, Course]
    ) -> None:
        super().__init__(time_attr="step", max_t=steps, grace_period=grace, reduction_factor=reduction)
        self._sweep = sweep
        for number, course in past.items():
            for step, objective in course:
                self._brackets[0].on_result(cast(Any, _Ended(f"trial {number}")), step, objective)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result["step"] < self._max_t:
            self._sweep.trial(trial.config["trial"]).stop_file.touch()
        return TrialScheduler.CONTINUE


@dataclass(frozen=True)
class _Ended:
    """What a bracket asks of a trial."""

    trial_id: str


class FolderPBT(PopulationBasedTraining):
    """Population based training whose trials keep their folder and their ranges when they take over a state."""

    def __init__(self, space: Space, interval: int) -> None:
        ranges = {}
        for name, domain in space.fields.items():
            low, high = domain.values
            ranges[name] = tune.loguniform(low, high) if domain.kind == "loguniform" else tune.uniform(low, high)
        super().__init__(
            time_attr="step",
            perturbation_interval=interval,
            hyperparam_mutations={"values": ranges},
            require_attrs=False,  # a trial that is told to stop before its first validation has none
            log_config=False,
        )
        self._fields = space.fields
        random.seed(space.seed)  # Ray's implementation draws from the global generators
        np.random.seed(space.seed)  # noqa: NPY002

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict, dict]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        values = {name: self._fields[name].tidy(value) for name, value in config["values"].items()}
        return {**config, "trial": trial.config["trial"], "values": values}, operations
