"""Sweeps on a real Ray, with tiny networks on real photographs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner
from ray.util import placement_group_table

from ray_sr.commands.tune import tune
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.recipes.reader import load_recipe, parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import Store
from ray_sr.training.launch import Interrupted
from ray_sr.tuning.budget import trials_at_once
from ray_sr.tuning.folder import SweepFolder
from ray_sr.tuning.results import Results, read_results
from ray_sr.tuning.space import parse_space
from ray_sr.tuning.sweep import begin_sweep, change_budget, publish_best, run_sweep
from tests.photos import write_real_photos

PATIENCE_SECONDS = 300
RECIPE_TEXT = """
name: tiny
scale: 2
data: {crop: 32, batch: 4}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 60, losses: [{kind: l1}], optimizer: {lr: 3e-3}}
validation: {every: 20, photos: 1}
training: {ema: 0}
"""
RECIPE = parse_recipe(RECIPE_TEXT)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    folder = tmp_path_factory.mktemp("sweeps")
    photos = find_photos([str(write_real_photos(folder / "photos", 128))])
    cutting = Cutting(sub_image=64, step=64, minimum=64)
    prepare(photos, str(folder / "shards"), cutting=cutting, hold_out=["chelsea.png"])
    return str(folder / "shards")


def begun(folder: Path, shards: str, space: str, recipe: Recipe = RECIPE) -> SweepFolder:
    sweep = SweepFolder.at(folder)
    begin_sweep(sweep, recipe, parse_space(space), shards)
    return sweep


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def nothing_is_reserved() -> bool:
    left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return not left and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def statuses(results: Results) -> dict[int, str]:
    return {outcome.number: outcome.status for outcome in results.outcomes}


# One good trial, one that would take minutes if it were not stopped, and each again with a mistake.
EARLY_STOP = """
fields:
  pretrain:
    grid:
      - {steps: 60, losses: [{kind: l1}], optimizer: {lr: 3e-3}}
      - {steps: 20000, losses: [{kind: l1}], optimizer: {lr: 1e-9}}
  init: {grid: [null, /nowhere/weights.safetensors]}
searcher: grid
scheduler: {kind: asha, grace: 20}
"""


def test_asha_stops_the_worse_trial_and_nothing_stays_behind(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = begun(tmp_path / "sweep", shards, EARLY_STOP)
    results = run_sweep(sweep, concurrent=1)
    assert statuses(results) == {1: "done", 2: "failed", 3: "stopped", 4: "failed"}
    for outcome in results.failed:
        assert "/nowhere/weights.safetensors" in (outcome.reason or "")
    wait_until(nothing_is_reserved)

    stopped = sweep.trial(3).run
    steps = [record["step"] for record in stopped.records("train")]
    assert steps[-1] < 20000
    checkpoint = stopped.checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint_{steps[-1]:08d}"

    files = {path.name for path in sweep.path.iterdir()}
    assert {"results.csv", "results.parquet", "results.txt", "best.yaml", "courses.png", "parallel.svg"} <= files
    assert load_recipe(str(sweep.path / "best.yaml")).pretrain == RECIPE.pretrain
    said = capsys.readouterr()
    assert "trial 3: stopped early" in said.err
    assert "trial 2: failed: " in said.err
    assert not said.out  # it belongs to the result, not to what Ray has to say

    store = Store(tmp_path / "store")
    record = publish_best(sweep, results, store, "best")
    assert store.show("best").ref == record.ref
    assert record.provenance.source == str(sweep.trial(1).path)
    assert record.metrics[0].values["psnr_y"] == pytest.approx(results.ranked[0].objective)


@pytest.mark.nightly
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, shards: str) -> None:
    """kill -9 of the driver in the second trial: the first stays as it is, the second goes on."""
    (tmp_path / "tiny.yaml").write_text(RECIPE_TEXT, encoding="utf-8")
    space = "{fields: {pretrain.steps: {grid: [40, 1200]}}}"
    (tmp_path / "space.yaml").write_text(space, encoding="utf-8")
    sweep = SweepFolder.at(tmp_path / "sweep")
    options = ["-c", "tiny.yaml", "-s", "space.yaml", "--data", shards, "-o", "sweep", "--trials", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from ray_sr.commands.tune import tune; tune()", *options, "--concurrent", "1"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    second = sweep.trial(2).run
    wait_until(lambda: process.poll() is not None or second.checkpoint() is not None)
    assert process.poll() is None, "the sweep ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(nothing_is_reserved)
    assert statuses(read_results(sweep)) == {1: "done", 2: "running"}
    first = sweep.trial(1).run.journal.read_bytes()
    reached = [record["step"] for record in second.records("validation")]
    spent = sweep.card().seconds

    arguments = ["-c", "demo", "-o", str(sweep.path), "--resume"]
    with pytest.raises(RecipeError, match="another recipe"):
        CliRunner().invoke(tune, arguments, catch_exceptions=False)
    results = run_sweep(sweep, concurrent=1, quiet=True)
    assert statuses(results) == {1: "done", 2: "done"}
    assert sweep.trial(1).run.journal.read_bytes() == first
    starts = [record["step"] for record in second.records("start")]
    assert starts[0] == 0
    assert 0 < starts[1] <= reached[-1] + RECIPE.validation.every
    steps = [record["step"] for record in second.records("validation")]
    assert steps == list(range(20, 1201, 20))
    assert sweep.card().seconds > spent
    assert run_sweep(sweep, quiet=True).outcomes == results.outcomes  # nothing is left to do


@pytest.mark.nightly
def test_population_based_training_hands_on_states(tmp_path: Path, shards: str) -> None:
    """The trial that learns nothing takes over the state of the other one, and another learning rate."""
    space = """
    fields: {pretrain.optimizer.lr: {loguniform: [1e-9, 1e-2]}}
    scheduler: {kind: pbt, interval: 200}
    budget: {trials: 2}
    seed: 10
    """
    first, second = [values["pretrain.optimizer.lr"] for values in parse_space(space).plan()]
    assert first > 1e-4
    assert second < 1e-6
    recipe = parse_recipe(RECIPE_TEXT, ["pretrain.steps=500", "validation.every=100"])
    sweep = begun(tmp_path / "sweep", shards, space, recipe)
    results = run_sweep(sweep, concurrent=1, quiet=True)
    assert statuses(results) == {1: "done", 2: "done"}
    card = sweep.trial(2).card()
    assert card is not None
    assert card.values["pretrain.optimizer.lr"] > second
    course = {o.number: dict(o.course) for o in results.outcomes}
    assert course[2][200] < course[1][200] - 1
    assert course[2][500] > course[2][200] + 3
    wait_until(nothing_is_reserved)


@pytest.mark.nightly
def test_ctrl_c_and_a_spent_budget_let_trials_end_at_a_checkpoint(tmp_path: Path, shards: str) -> None:
    recipe = parse_recipe(RECIPE_TEXT, ["pretrain.steps=50000"])
    space = "{fields: {generator.blocks: {grid: [1, 2]}}, budget: {trials: 2, time: 1h}}"
    sweep = begun(tmp_path / "sweep", shards, space, recipe)
    run = sweep.trial(1).run

    def press_ctrl_c() -> None:
        wait_until(lambda: run.checkpoint() is not None)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(Interrupted, match="go on with --resume"):
        run_sweep(sweep, concurrent=1, quiet=True)
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint_{run.records('train')[-1]['step']:08d}"
    assert statuses(read_results(sweep)) == {1: "running"}
    wait_until(nothing_is_reserved)

    sweep.write(sweep.card().model_copy(update={"seconds": 3600 - 1e-3}))
    results = run_sweep(sweep, concurrent=1, quiet=True)
    assert set(statuses(results).values()) == {"running"}
    assert sweep.why_stopped() == "budget"
    with pytest.raises(RecipeError, match=r"the time of 3600 s is spent: give more with --time"):
        change_budget(sweep, trials=None, seconds=None)
    change_budget(sweep, trials=3, seconds=7200)
    assert (sweep.space().trials, sweep.space().budget.time) == (3, 7200)


# ------------------------------------------------------------------------------- refused before any trial


def test_a_time_smaller_than_one_trial_is_refused(tmp_path: Path, shards: str) -> None:
    space = "{fields: {generator.blocks: {choice: [1, 2]}}, budget: {trials: 2, time: 1s}}"
    recipe = parse_recipe(RECIPE_TEXT, ["pretrain.steps=1000000"])
    with pytest.raises(RecipeError, match="a budget of 1 s is not enough for one trial: 1000000 steps"):
        begun(tmp_path / "sweep", shards, space, recipe)
    assert not (tmp_path / "sweep").exists()


def test_gpu_hours_without_a_gpu_are_refused(tmp_path: Path, shards: str) -> None:
    space = "{fields: {generator.blocks: {choice: [1, 2]}}, budget: {gpu_hours: 1}}"
    with pytest.raises(RecipeError, match="these trials use no GPU"):
        begun(tmp_path / "sweep", shards, space, parse_recipe(RECIPE_TEXT, ["training.device=cpu"]))


def test_data_without_held_out_photos_is_refused(tmp_path: Path, ray_local: None) -> None:
    photos = find_photos([str(write_real_photos(tmp_path / "photos", 128) / "coffee.png")])
    prepare(photos, str(tmp_path / "shards"), cutting=Cutting(sub_image=64, step=64, minimum=64))
    with pytest.raises(InputError, match="no held-out photos"):
        begun(tmp_path / "sweep", str(tmp_path / "shards"), "fields: {generator.blocks: {choice: [1]}}")
    with pytest.raises(InputError, match=r"manifest\.json|cannot read the shards"):
        begun(tmp_path / "sweep", str(tmp_path / "none"), "fields: {generator.blocks: {choice: [1]}}")
    with pytest.raises(RecipeError, match="no data"):
        begin_sweep(SweepFolder.at(tmp_path / "x"), RECIPE, parse_space("fields: {seed: {int: [1, 9]}}"), None)


def test_more_at_once_than_there_is_room_for_is_refused(ray_local: None) -> None:
    """4 CPUs: each trial takes one for its worker and one for crops."""
    assert trials_at_once(RECIPE) == 2
    assert trials_at_once(RECIPE, 1) == 1
    with pytest.raises(ResourceError, match="room for 2 at once"):
        trials_at_once(RECIPE, 3)
    wide = parse_recipe(RECIPE_TEXT, ["training.workers=2", "training.cpus_per_worker=0.5", "data.batch=8"])
    assert trials_at_once(wide) == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-c", "demo"], "-c RECIPE -s SPACE"),
        (["--resume"], "-o SWEEP"),
        (["-c", "demo", "-s", "space.yaml", "--trials", "0"], "--trials 0 is less than one trial"),
        (["-c", "demo", "-s", "space.yaml", "--time", "soon"], "--time: 'soon' is no time"),
        (["-o", "x", "--resume", "data.batch=8"], "give it with -c RECIPE"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], part: str) -> None:
    answer = CliRunner().invoke(tune, arguments)
    assert answer.exit_code == 2
    assert part in answer.output


def test_a_store_that_cannot_be_written_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "space.yaml").write_text("fields: {generator.blocks: {choice: [1, 2]}}", encoding="utf-8")
    arguments = [
        "-c",
        "demo",
        "-s",
        str(tmp_path / "space.yaml"),
        "-o",
        str(tmp_path / "sweep"),
        "--publish",
        "best",
    ]
    with pytest.raises(ResourceError, match="cannot make this folder"):
        CliRunner().invoke(tune, [*arguments, "--store", str(tmp_path / "file" / "store")], catch_exceptions=False)
    arguments[-1] = "not a name"
    with pytest.raises(Exception, match="cannot name a channel"):
        CliRunner().invoke(tune, [*arguments, "--store", str(tmp_path / "store")], catch_exceptions=False)
    assert not (tmp_path / "sweep").exists()
