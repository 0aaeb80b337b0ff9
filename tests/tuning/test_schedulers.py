"""Early stopping: the decisions of Ray's ASHA, left as files, and remembered over sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_sr.tuning.folder import SweepFolder, TrialCard
from ray_sr.tuning.schedulers import FileASHA

STEPS, GRACE, REDUCTION = 90, 10, 3


def course(seed: int) -> list[tuple[int, float]]:
    """A noisy rising curve with a validation every 10 steps."""
    rng = np.random.default_rng(seed)
    end = rng.uniform(25, 30)
    return [(step, end - 5 * np.exp(-step / 30) + rng.normal(0, 0.2)) for step in range(10, STEPS + 1, 10)]


def run_all(scheduler: ASHAScheduler, sweep: SweepFolder, numbers: range) -> dict[int, int]:
    """Trials one after another, each until it is stopped: the step at which each ended."""
    scheduler.set_search_properties("psnr_y", "max")
    ended = {}
    for number in numbers:
        trial = Trial("trial", stub=True, trial_id=f"id{number}", config={"trial": number})
        sweep.trial(number).write(TrialCard(number=number, values={}))
        scheduler.on_trial_add(None, trial)
        for step, value in course(number):
            ended[number] = step
            decision = scheduler.on_trial_result(None, trial, {"step": step, "psnr_y": value})
            if decision == TrialScheduler.STOP or sweep.trial(number).stop_file.exists():
                break
    return ended


def rays_own() -> ASHAScheduler:
    return ASHAScheduler(time_attr="step", max_t=STEPS, grace_period=GRACE, reduction_factor=REDUCTION)


def test_it_decides_as_rays_asha_but_leaves_a_file(tmp_path: Path) -> None:
    ours = SweepFolder.at(tmp_path / "ours")
    ended = run_all(FileASHA(ours, STEPS, GRACE, REDUCTION, {}), ours, range(1, 21))
    expected = run_all(rays_own(), SweepFolder.at(tmp_path / "rays"), range(1, 21))
    assert ended == expected
    assert min(ended.values()) < STEPS == max(ended.values())
    for number, step in ended.items():
        assert ours.trial(number).stop_file.exists() == (step < STEPS)


def test_it_never_lets_tune_end_an_actor(tmp_path: Path) -> None:
    sweep = SweepFolder.at(tmp_path)
    scheduler = FileASHA(sweep, STEPS, GRACE, REDUCTION, {})
    scheduler.set_search_properties("psnr_y", "max")
    for number in range(1, 8):
        trial = Trial("trial", stub=True, trial_id=f"id{number}", config={"trial": number})
        sweep.trial(number).write(TrialCard(number=number, values={}))
        scheduler.on_trial_add(None, trial)
        for step, value in course(number):
            result = {"step": step, "psnr_y": value - number}
            assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    assert any(sweep.trial(number).stop_file.exists() for number in range(1, 8))


def test_a_trial_stopped_before_its_first_validation_is_no_problem(tmp_path: Path) -> None:
    scheduler = FileASHA(SweepFolder.at(tmp_path), STEPS, GRACE, REDUCTION, {})
    scheduler.set_search_properties("psnr_y", "max")
    trial = Trial("trial", stub=True, trial_id="one", config={"trial": 1})
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"done": True}) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, trial, {"done": True})


@pytest.mark.parametrize("half", [1, 4, 9])
def test_a_later_session_decides_as_if_there_had_been_no_interruption(tmp_path: Path, half: int) -> None:
    """Ray's own restoration forgets the rungs: then the first trials after it would never be stopped."""
    whole = SweepFolder.at(tmp_path / "whole")
    expected = run_all(FileASHA(whole, STEPS, GRACE, REDUCTION, {}), whole, range(1, 21))
    parts = SweepFolder.at(tmp_path / "parts")
    ended = run_all(FileASHA(parts, STEPS, GRACE, REDUCTION, {}), parts, range(1, half + 1))
    past = {number: [point for point in course(number) if point[0] <= step] for number, step in ended.items()}
    ended |= run_all(FileASHA(parts, STEPS, GRACE, REDUCTION, past), parts, range(half + 1, 21))
    assert ended == expected
