"""Writes down what happens in a sweep: the trials' cards, the time spent, the lines on the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import first_line
from ray_sr.tuning.folder import Status, SweepFolder, TrialCard
from ray_sr.tuning.progress import SweepProgress
from ray_sr.tuning.space import Budget
from ray_sr.tuning.trial_recipe import with_values

SECONDS_BETWEEN_NOTES = 5.0


class SweepCallback(tune.Callback):
    """Hears Tune in the driver. The only writer of the cards, and who ends the sweep when its budget is spent."""

    def __init__(
        self, sweep: SweepFolder, recipe: Recipe, budget: Budget, gpus_of_trial: float, progress: SweepProgress
    ) -> None:
        self._sweep, self._recipe, self._budget = sweep, recipe, budget
        self._gpus, self._progress = gpus_of_trial, progress
        self._account = sweep.card()
        self._shown: dict[int, int] = {}
        self._last_count = self._last_note = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restoration that is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._take_values(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        card = self._take_values(trial)
        step = result.get("step", 0)
        if result.get("replayed"):
            self._progress.known(card.number, result[self._progress.metric])
        elif step > self._shown.get(card.number, 0):  # the result that ends a trial may repeat the last one
            self._progress.validated(card, self._steps(card), result)
        self._shown[card.number] = step

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = self._sweep.trial(trial.config["trial"])
        card = self._take_values(trial)
        step = max((record["step"] for record in folder.run.records("train")), default=0)
        status: Status = "stopped" if folder.stop_file.exists() else "running"
        self._end(card.model_copy(update={"status": "done" if step >= self._steps(card) else status}), step)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        card = self._take_values(trial)
        self._end(card.model_copy(update={"status": "failed", "reason": _reason(trial)}), 0)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Count the time; when the budget is spent, ask the trials to stop."""
        now = time.monotonic()
        passed, self._last_count = now - self._last_count, now
        gpus = self._gpus * sum(trial.status == "RUNNING" for trial in trials)
        self._account = self._account.model_copy(
            update={
                "seconds": self._account.seconds + passed,
                "gpu_seconds": self._account.gpu_seconds + gpus * passed,
            }
        )
        if now - self._last_note > SECONDS_BETWEEN_NOTES:
            self._last_note = now
            self.note()
        if (spent := spent_budget(self._budget, self._account.seconds, self._account.gpu_seconds)) and (
            self._sweep.why_stopped() is None
        ):
            self._progress.say(f"{spent}: trials stop at a checkpoint")
            self._sweep.stop("budget")

    def note(self) -> None:
        """Save how much of the budget is spent."""
        self._sweep.write(self._account)

    def _take_values(self, trial: Any) -> TrialCard:
        """The trial's card, rewritten where it is new or PBT has changed the values."""
        folder = self._sweep.trial(trial.config["trial"])
        present = folder.card()
        values = dict(trial.config["values"])
        if present is not None and present.values == values:
            return present
        card = TrialCard(number=folder.number, values=values)
        folder.write(card)
        if present is None:
            self._progress.began(card)
        else:
            self._progress.changed(card)
        return card

    def _end(self, card: TrialCard, step: int) -> None:
        self._sweep.trial(card.number).write(card)
        self._progress.ended(card, step)

    def _steps(self, card: TrialCard) -> int:
        return with_values(self._recipe, card.values).total_steps


def _reason(trial: Any) -> str:
    """What a trial failed with, in one line, as Tune noted it in its own folder."""
    if not trial.pickled_error_file or not Path(trial.pickled_error_file).exists():
        return "its process was lost"
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    return first_line(error)


def spent_budget(budget: Budget, seconds: float, gpu_seconds: float) -> str | None:
    """Which part of the budget is spent, in words; None while there is some left."""
    if budget.time is not None and seconds >= budget.time:
        return f"the time of {budget.time:.0f} s is spent"
    if budget.gpu_hours is not None and gpu_seconds >= budget.gpu_hours * 3600:
        return f"the {budget.gpu_hours:g} GPU hours are spent"
    return None
