"""A sweep from its checks to its results: Ray Tune runs the trials, files in the sweep's folder are its memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune

from ray_sr.data.manifest import read_manifest, shards_of
from ray_sr.errors import ClusterError, InputError, RecipeError
from ray_sr.images import write_bytes
from ray_sr.perceptual.quality import resolve_quality_weights
from ray_sr.perceptual.vgg import resolve_feature_weights
from ray_sr.publishing import publish_run
from ray_sr.recipes.recipe import Recipe
from ray_sr.signals import ending_gently
from ray_sr.store import ModelRecord, Store
from ray_sr.training.launch import Interrupted
from ray_sr.training.teachers import check_teachers
from ray_sr.tuning.budget import check_budget, gpus_of_trial, trials_at_once
from ray_sr.tuning.callback import SweepCallback, spent_budget
from ray_sr.tuning.folder import SweepCard, SweepFolder, TrialCard
from ray_sr.tuning.plots import draw_all
from ray_sr.tuning.progress import SweepProgress
from ray_sr.tuning.results import (
    Results,
    best_recipe,
    csv_table,
    parquet_table,
    read_results,
    text_table,
)
from ray_sr.tuning.schedulers import make_scheduler
from ray_sr.tuning.searching import Known, ListSearch, OptunaTrials, Planned, trial_config
from ray_sr.tuning.space import Space, Values, parse_space
from ray_sr.tuning.trial import TrialRun
from ray_sr.tuning.trial_recipe import check_space

_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # prints to stdout even where verbose is 0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C lets the trials save checkpoints first
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial stopped before its first validation reports none
}


def begin_sweep(sweep: SweepFolder, recipe: Recipe, space: Space, shards: str | None) -> None:
    """Check all that can be checked before any trial, then make the folder. Ray must be running.

    Raises RecipeError, InputError and ResourceError.
    """
    check_space(space, recipe)
    place = shards_of(recipe, shards)
    manifest = read_manifest(place)
    if not manifest.photos.get("validation"):
        raise InputError(f"{place}: no held-out photos to compare trials by: `data prepare --validation 0.1`")
    for stage in (recipe.pretrain, recipe.gan):
        if stage:
            resolve_feature_weights(stage.losses, recipe.features)
            resolve_quality_weights(stage.losses)
    check_teachers(recipe)
    check_budget(space, recipe)
    sweep.begin(SweepCard(space=space.dump(), shards=place, data_digest=manifest.digest), recipe)


def _check_data(card: SweepCard, sweep: SweepFolder) -> None:
    """Refuse to train further trials on other photos than those that the others were measured on."""
    if card.data_digest and read_manifest(card.shards).digest != card.data_digest:
        raise InputError(
            f"{card.shards}: not the shards that {sweep.path} began with, trials could not be compared: "
            "bring them back, or begin another sweep with another -o"
        )


def change_budget(sweep: SweepFolder, *, trials: int | None, seconds: float | None) -> None:
    """Give a sweep that goes on another number of trials or more time. Raises RecipeError as `Space` does."""
    card = sweep.card()
    text = yaml.safe_dump(card.space)
    space = parse_space(text, trials=trials, seconds=seconds, source=str(sweep.card_file))
    if spent := spent_budget(space.budget, card.seconds, card.gpu_seconds):
        raise RecipeError(f"{sweep.path}: {spent}: give more with --time (it counts from the sweep's beginning)")
    sweep.write(card.model_copy(update={"space": space.dump()}))


def run_sweep(sweep: SweepFolder, *, concurrent: int | None = None, quiet: bool = False) -> Results:
    """Train what is left of a sweep's trials and write the results. Ray must be running.

    Raises ResourceError where `concurrent` is too much, Interrupted on Ctrl-C (trials have saved checkpoints),
    ClusterError where every trial failed or Ray is lost.
    """
    space, recipe = sweep.space(), sweep.recipe()
    at_once = trials_at_once(recipe, concurrent)
    sweep.stop_file.unlink(missing_ok=True)
    cards = [card for trial in sweep.trials() if (card := trial.card())]
    ended = [card for card in cards if card.status != "running"]
    with SweepProgress(sweep.path.name, space, space.trials, done=len(ended), quiet=quiet) as progress:
        for outcome in read_results(sweep).outcomes:
            if outcome.objective is not None:
                progress.known(outcome.number, outcome.objective)
        left = _left(space, cards)
        if left:
            _check_data(sweep.card(), sweep)
            progress.say(_greeting(space, recipe, len(ended), len(left), at_once))
            ledger = SweepCallback(sweep, recipe, space.budget, gpus_of_trial(recipe), progress)
            with ending_gently(lambda: _interrupt(sweep, progress)):
                _fit(sweep, space, recipe, left, ended, at_once, ledger)
            ledger.note()
    results = read_results(sweep)
    write_results(sweep, results)
    if sweep.why_stopped() == "interrupted":
        raise Interrupted(f"{sweep.path}: interrupted, checkpoints are saved: go on with --resume")
    if results.outcomes and len(results.failed) == len(results.outcomes):
        first = results.failed[0]
        raise ClusterError(f"all {len(results.failed)} trials failed; trial {first.number}: {first.reason}")
    return results


def write_results(sweep: SweepFolder, results: Results) -> dict[str, Path]:
    """The tables, best.yaml and the pictures, in the sweep's folder. ResourceError where it cannot be written."""
    files = {
        "results.csv": csv_table(results).encode(),
        "results.parquet": parquet_table(results),
        "results.txt": f"{text_table(results)}\n".encode(),
        **draw_all(results),
    }
    if results.best:
        files["best.yaml"] = best_recipe(sweep, results.best).encode()
    for name, data in files.items():
        write_bytes(sweep.path / name, data)
    return {name: sweep.path / name for name in files}


def publish_best(sweep: SweepFolder, results: Results, store: Store, channel: str) -> ModelRecord:
    """Publish the best trial's generator and let the channel mean it. Raises InputError where there is none."""
    if results.best is None:
        raise InputError(f"{sweep.path}: no trial reached a validation, there is nothing to publish")
    return publish_run(sweep.trial(results.best.number).run, store, promote=channel)


# ------------------------------------------------------------------------------------------ what is left


def _left(space: Space, cards: Sequence[TrialCard]) -> list[Planned]:
    """Interrupted trials first, then those that have not begun. Optuna chooses the values of the latter."""
    begun = [Planned(card.number, card.values) for card in cards if card.status == "running"]
    taken = {card.number for card in cards}
    numbers = [number for number in range(1, space.trials + 1) if number not in taken]
    plan = [{}] * space.trials if space.searcher == "optuna" else space.plan()
    return [*begun, *(Planned(number, plan[number - 1]) for number in numbers)]


def _greeting(space: Space, recipe: Recipe, ended: int, left: int, at_once: int) -> str:
    before = f"{ended} trials have ended, " if ended else ""
    scheduler = "" if space.scheduler.kind == "none" else f", {space.scheduler.kind}"
    limit = f", at most {space.budget.time:.0f} s in all" if space.budget.time else ""
    return (
        f"{recipe.name}: {before}{left} to go, {at_once} at once, {recipe.total_steps} steps each; "
        f"{space.searcher} search over {len(space.fields)} field(s){scheduler}{limit}"
    )


# --------------------------------------------------------------------------------------------------- Tune


def _fit(
    sweep: SweepFolder,
    space: Space,
    recipe: Recipe,
    left: list[Planned],
    ended: list[TrialCard],
    at_once: int,
    ledger: SweepCallback,
) -> None:
    """Let Ray Tune run the trials until all have ended or the sweep is asked to stop."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not logging.getLogger("ray").isEnabledFor(logging.INFO):  # not --verbose: failed trials are named by us
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    past = {o.number: o.course for o in read_results(sweep).outcomes if o.status != "running"}
    search, param_space = _search(sweep, space, left, ended)
    tuner = tune.Tuner(
        tune.with_resources(TrialRun, _share_of_node(at_once)),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric=space.objective.metric,
            mode="max",
            search_alg=search,
            scheduler=make_scheduler(space, recipe, sweep, past),
            num_samples=1 if search is None else len(left),
            max_concurrent_trials=None if search is None else at_once,
            reuse_actors=True,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"{datetime.now():%Y%m%d-%H%M%S}",
            storage_path=str(sweep.tune_folder),
            callbacks=[ledger],
            verbose=0,
        ),
    )
    try:
        with redirect_stdout(sys.stderr):  # Ray prints warnings of its raylet; stdout belongs to the result
            tuner.fit()
    except (ray.exceptions.RayError, tune.TuneError) as error:
        raise ClusterError(f"Ray Tune stopped: {str(error).splitlines()[0]}; go on with --resume") from error


def _search(
    sweep: SweepFolder, space: Space, left: list[Planned], ended: list[TrialCard]
) -> tuple[Any, dict[str, Any]]:
    """A searcher, or for PBT, which allows none, all trials as a grid over their numbers."""
    if space.scheduler.kind == "pbt":
        values = {trial.number: trial.values for trial in left}
        return None, {
            **trial_config(sweep, left[0]),
            "trial": tune.grid_search(list(values)),
            "values": tune.sample_from(_ValuesOf(values)),
        }
    if space.searcher == "optuna":
        reached = {o.number: o.objective for o in read_results(sweep).outcomes}
        known = [Known(c.values, value) for c in ended if (value := reached[c.number]) is not None]
        begun = [trial for trial in left if trial.values]
        new = [trial.number for trial in left if not trial.values]
        return OptunaTrials(sweep, space, begun, known, new), {}
    return ListSearch(sweep, left), {}


@dataclass(frozen=True)
class _ValuesOf:
    """Looks up the values of the trial whose number the grid gave."""

    values: dict[int, Values]

    def __call__(self, spec: Any) -> Values:
        return self.values[spec.config["trial"]]


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _share_of_node(at_once: int) -> tune.PlacementGroupFactory:
    """Trials themselves take no CPU, their workers do. A share of this node's own resource limits their number
    also where PBT pauses some, which Tune's max_concurrent_trials counts as running."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    name = next(key for key in node["Resources"] if key.startswith("node:") and "internal" not in key)
    return tune.PlacementGroupFactory([{name: int(9900 / at_once) / 10_000}])


def _interrupt(sweep: SweepFolder, progress: SweepProgress) -> None:
    """The trials save their checkpoints, then the sweep ends."""
    progress.say("stopping: trials save a checkpoint first (again: stop at once)")
    sweep.stop_file.write_text("interrupted", encoding="utf-8")
