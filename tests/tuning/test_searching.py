"""Who proposes the next trial: a list, or Optuna."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from ray_sr.tuning.folder import SweepFolder
from ray_sr.tuning.searching import Known, ListSearch, OptunaTrials, Planned
from ray_sr.tuning.space import Space, parse_space

SPACE = """
fields:
  lr: {loguniform: [1e-5, 1e-1]}
  weight: {uniform: [0, 1]}
  blocks: {int: [1, 8]}
  betas: {choice: [[0.9, 0.99], [0.5, 0.999]]}
searcher: optuna
seed: 3
"""


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return SweepFolder.at(tmp_path)


def test_a_list_is_proposed_in_its_order_until_the_sweep_stops(sweep: SweepFolder) -> None:
    search = ListSearch(sweep, [Planned(3, {"lr": 1}), Planned(5, {"lr": 2}), Planned(6, {"lr": 3})])
    first = search.suggest("a")
    assert (first["trial"], first["values"], first["sweep"]) == (3, {"lr": 1}, str(sweep.path))
    assert search.suggest("b")["trial"] == 5
    sweep.stop("budget")
    assert search.suggest("c") == Searcher.FINISHED


def test_an_empty_list_is_finished(sweep: SweepFolder) -> None:
    search = ListSearch(sweep, [Planned(1, {})])
    search.suggest("a")
    assert search.suggest("b") == Searcher.FINISHED


def optuna_trials(
    sweep: SweepFolder, first: list[Planned], known: list[Known], new: list[int], space: Space | None = None
) -> OptunaTrials:
    pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'ray-sr[tune]'")
    return OptunaTrials(sweep, space or parse_space(SPACE), first, known, new)


def test_optuna_proposes_values_of_the_space(sweep: SweepFolder) -> None:
    search = optuna_trials(sweep, [], [], list(range(1, 21)))
    proposed = []
    for number in range(1, 21):
        config = search.suggest(f"t{number}")
        assert config["trial"] == number
        proposed.append(config["values"])
        search.on_trial_complete(f"t{number}", {"psnr_y": 20.0 + number % 3})
    assert search.suggest("t21") == Searcher.FINISHED
    assert all(1e-5 <= values["lr"] <= 1e-1 for values in proposed)
    assert all(isinstance(values["blocks"], int) and 1 <= values["blocks"] <= 8 for values in proposed)
    assert {tuple(values["betas"]) for values in proposed} == {(0.9, 0.99), (0.5, 0.999)}
    assert all(float(f"{values['lr']:.4g}") == values["lr"] for values in proposed)


def test_optuna_finds_what_is_better_than_chance(sweep: SweepFolder) -> None:
    """The objective falls off around lr = 1e-3: TPE's second half lies nearer to it than a random search."""
    search = optuna_trials(sweep, [], [], list(range(1, 41)))
    distances = []
    for number in range(1, 41):
        values = search.suggest(f"t{number}")["values"]
        distance = abs(math.log10(values["lr"]) + 3)
        distances.append(distance)
        search.on_trial_complete(f"t{number}", {"psnr_y": 30 - distance})
    assert sum(distances[20:]) / 20 < 0.6  # 1.0 in the mean for a random search


def test_optuna_goes_on_with_interrupted_trials_and_knows_the_ended_ones(sweep: SweepFolder) -> None:
    values = {"lr": 3e-3, "weight": 0.25, "blocks": 4, "betas": [0.5, 0.999]}
    good = [Known({**values, "lr": 1e-3 * (1 + n / 10)}, 30.0 + n) for n in range(6)]
    bad = [Known({**values, "lr": 10.0**-n, "betas": [0.9, 0.99]}, 10.0) for n in (1, 2, 4, 5)]
    search = optuna_trials(sweep, [Planned(7, values)], good + bad, [11, 12, 13, 14, 15, 16])
    first = search.suggest("again")
    assert (first["trial"], first["values"]) == (7, values)
    search.on_trial_complete("again", {"psnr_y": 33.0})
    rates = []
    for number in range(11, 17):
        config = search.suggest(f"new{number}")
        assert config["trial"] == number
        rates.append(config["values"]["lr"])
        search.on_trial_complete(f"new{number}", {"psnr_y": 25.0})
    assert sorted(rates)[2] > 1e-4  # most lie in the half that is known to be good
    assert sorted(rates)[3] < 1e-1
    assert len(search._inner._ot_study.trials) == 17


def test_optuna_hears_of_failures_and_of_trials_without_any_validation(sweep: SweepFolder) -> None:
    search = optuna_trials(sweep, [], [], [1, 2, 3])
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    search.suggest("b")
    search.on_trial_complete("b", {"done": True})
    search.suggest("c")
    states = [trial.state.name for trial in search._inner._ot_study.trials]
    assert states == ["FAIL", "PRUNED", "RUNNING"]


def test_the_state_that_tune_saves_can_be_written(sweep: SweepFolder, tmp_path: Path) -> None:
    ListSearch(sweep, [Planned(1, {})]).save(str(tmp_path / "list"))
    optuna_trials(sweep, [], [], [1]).save(str(tmp_path / "optuna"))
    assert (tmp_path / "list").read_text() == "[1]"
    assert (tmp_path / "optuna").stat().st_size > 0
