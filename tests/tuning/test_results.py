"""Tables, ranking, Pareto front, importance and pictures of sweeps."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import spearmanr

from ray_sr.errors import InputError
from ray_sr.models import build_generator, count_parameters
from ray_sr.recipes.reader import load_recipe
from ray_sr.tuning.folder import SweepFolder
from ray_sr.tuning.importance import common_step, importances
from ray_sr.tuning.plots import draw_all
from ray_sr.tuning.results import (
    best_recipe,
    csv_table,
    parquet_table,
    read_results,
    rows,
    short_names,
    text_table,
    why_best,
)
from ray_sr.tuning.trial_recipe import with_values
from tests.tuning.synthetic_sweep import FIELDS, RECIPE, add_trial, synthetic_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """Five trials: the highest is large, one nearly as good is small, one was stopped, one failed, one goes on."""
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [26, 27, 28, 28.5, 29.00], lr=3e-3, blocks=4, speed=1.0)
    add_trial(sweep, 2, [25.5, 27, 28, 28.4, 28.97], lr=2e-3, blocks=1, speed=4.0)
    add_trial(sweep, 3, [24, 24.5], lr=1e-4, blocks=1, speed=5.0, status="stopped")
    add_trial(sweep, 4, [23], lr=9e-3, blocks=2, status="failed", reason="10 steps in a row, not finite")
    add_trial(sweep, 5, [25, 26, 27], lr=1e-3, blocks=2, status="running")
    return sweep


def test_trials_are_ranked_by_what_they_reached(sweep: SweepFolder) -> None:
    results = read_results(sweep)
    assert [(o.rank, o.number, o.objective) for o in results.ranked] == [
        (1, 1, 29.0), (2, 2, 28.97), (3, 5, 27), (4, 3, 24.5), (5, 4, 23)
    ]  # fmt: skip
    assert [o.shown_status for o in results.outcomes] == ["done", "done", "unfinished", "stopped early", "failed"]
    assert results.bicubic == 25.5
    assert [o.step for o in results.ranked] == [100, 100, 60, 40, 20]
    assert [o.steps for o in results.ranked] == [100] * 5


def test_parameters_are_those_of_the_network(sweep: SweepFolder) -> None:
    for outcome in read_results(sweep).outcomes:
        network = with_values(RECIPE, outcome.values).network
        assert outcome.parameters == count_parameters(build_generator(network))["parameters"]


def test_among_equals_the_smaller_network_is_the_best(sweep: SweepFolder) -> None:
    """0.03 dB are within the tolerance of 0.05 dB; without tolerance the highest wins."""
    results = read_results(sweep)
    assert results.best is not None
    assert results.best.number == 2
    assert "within 0.05 dB of trial 1 (29.00 dB" in why_best(results)


@pytest.mark.parametrize(
    ("objective", "best"),
    [("{tolerance: 0}", 1), ("{tolerance: 0.05, prefer: speed}", 2), ("{metric: psnr_rgb, tolerance: 0.01}", 1)],
)
def test_the_objective_says_what_is_best(tmp_path: Path, objective: str, best: int) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep", FIELDS + f"objective: {objective}")
    add_trial(sweep, 1, [26, 29.00], blocks=4, speed=1.0)
    add_trial(sweep, 2, [26, 28.97], blocks=1, speed=4.0)
    results = read_results(sweep)
    assert results.best is not None
    assert results.best.number == best


def test_a_stopped_trial_is_the_best_only_where_none_is_done(tmp_path: Path) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [28], status="stopped")
    add_trial(sweep, 2, [27.5], status="running")
    first = read_results(sweep).best
    assert first is not None
    assert first.number == 1
    add_trial(sweep, 3, [24, 25, 26, 27, 27])
    then = read_results(sweep).best
    assert then is not None
    assert then.number == 3


def test_the_front_holds_what_nothing_beats(sweep: SweepFolder) -> None:
    """Checked against the definition, by comparing all pairs."""
    outcomes = read_results(sweep).ranked
    axes = {o.number: (o.objective or 0, -o.parameters, o.steps_per_s or 0) for o in outcomes}
    expected = {
        number
        for number, own in axes.items()
        if not any(
            np.all(np.array(other) >= own) and np.any(np.array(other) > own) for other in axes.values()
        )
    }  # fmt: skip
    assert {o.number for o in outcomes if o.on_front} == expected == {1, 2}


def test_equal_networks_have_equal_speed(sweep: SweepFolder) -> None:
    """Trials 2 and 3 compute the same, so noise in their speeds must not put both on the front."""
    speeds = {o.number: o.steps_per_s for o in read_results(sweep).outcomes}
    assert speeds[2] == speeds[3] == 4.5
    assert speeds[1] == 1.0


def test_tables_hold_every_trial(sweep: SweepFolder) -> None:
    results = read_results(sweep)
    lines = list(csv.DictReader(io.StringIO(csv_table(results))))
    columns = pq.read_table(io.BytesIO(parquet_table(results))).to_pylist()
    assert [int(line["trial"]) for line in lines] == [row["trial"] for row in columns] == [1, 2, 5, 3, 4]
    assert columns == rows(results)
    assert float(lines[1]["pretrain.optimizer.lr"]) == 2e-3
    assert lines[-1]["reason"] == "10 steps in a row, not finite"
    assert [row["best"] for row in columns] == [False, True, False, False, False]
    text = text_table(results).splitlines()
    assert text[0].split() == ["rank", "trial", "PSNR", "parameters", "steps/s", "step", "lr", "blocks", "status"]
    assert text[1].split()[:3] == ["1", "1", "29.00*"]
    assert len(text) == 7


def test_values_of_any_kind_go_into_the_tables(tmp_path: Path) -> None:
    space = "fields: {data.flips: {choice: [true, false]}, generator: {grid: [{kind: compact}, {kind: srresnet}]}}"
    sweep = synthetic_sweep(tmp_path / "sweep", space)
    add_trial(sweep, 1, [26, 27])
    trial = sweep.trial(1)
    card = trial.card()
    assert card is not None
    trial.write(card.model_copy(update={"values": {"data.flips": True, "generator": {"kind": "compact"}}}))
    results = read_results(sweep)
    row = pq.read_table(io.BytesIO(parquet_table(results))).to_pylist()[0]
    assert row["generator"] == '{"kind": "compact"}'
    assert row["data.flips"] is True
    assert "compact" in text_table(results)
    assert draw_all(results)


def test_the_best_recipe_is_read_back_as_it_was_trained(sweep: SweepFolder, tmp_path: Path) -> None:
    results = read_results(sweep)
    assert results.best is not None
    path = tmp_path / "best.yaml"
    path.write_text(best_recipe(sweep, results.best), encoding="utf-8")
    recipe = load_recipe(str(path))
    assert recipe.data.shards == sweep.card().shards
    expected = with_values(RECIPE, {**results.best.values, "data.shards": sweep.card().shards})
    assert recipe == expected


def test_short_names_stay_different() -> None:
    fields = ["gan.generator_optimizer.lr", "gan.discriminator_optimizer.lr", "generator.blocks"]
    assert list(short_names(fields).values()) == ["generator_optimizer.lr", "discriminator_optimizer.lr", "blocks"]


# ---------------------------------------------------------------------------------------- importance


def test_trials_are_compared_at_the_step_that_all_reached(sweep: SweepFolder) -> None:
    assert common_step(read_results(sweep)) == 20


def test_importance_of_numbers_is_spearmans_rank_correlation(tmp_path: Path) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep")
    rng = np.random.default_rng(4)
    rates = rng.uniform(1e-4, 1e-2, 12)
    blocks = rng.choice([1, 2, 4], 12)
    reached = 25 + 100 * rates + rng.standard_normal(12) * 0.2
    for number, (lr, block, psnr) in enumerate(zip(rates, blocks, reached, strict=True), 1):
        add_trial(sweep, number, [psnr], lr=float(lr), blocks=int(block))
    found = {importance.field: importance.value for importance in importances(read_results(sweep))}
    assert found["pretrain.optimizer.lr"] == pytest.approx(spearmanr(rates, reached).statistic)
    assert found["generator.blocks"] == pytest.approx(spearmanr(blocks, reached).statistic)


def test_importance_of_unordered_choices_is_their_correlation_ratio(tmp_path: Path) -> None:
    """1 where the choice alone decides the rank, 0 where the groups' mean ranks are equal."""
    space = "fields: {training.precision: {choice: [fp32, bf16]}, data.cache: {choice: [auto, stream]}}"
    sweep = synthetic_sweep(tmp_path / "sweep", space)
    for number, (precision, cache) in enumerate(
        [("fp32", "auto"), ("fp32", "stream"), ("bf16", "stream"), ("bf16", "auto")], 1
    ):
        add_trial(sweep, number, [20.0 if precision == "fp32" else 30.0])
        trial = sweep.trial(number)
        card = trial.card()
        assert card is not None
        values = {"training.precision": precision, "data.cache": cache}
        trial.write(card.model_copy(update={"values": values}))
    found = {importance.field: importance for importance in importances(read_results(sweep))}
    assert found["training.precision"].value == pytest.approx(1)
    assert found["data.cache"].value == pytest.approx(0, abs=1e-12)
    assert found["data.cache"].is_ratio


def test_two_trials_say_nothing_about_importance(tmp_path: Path) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [26])
    add_trial(sweep, 2, [27])
    assert importances(read_results(sweep)) == []


# ------------------------------------------------------------------------------------------ pictures


def test_pictures_are_png_and_svg_with_something_on_them(sweep: SweepFolder) -> None:
    files = draw_all(read_results(sweep))
    kinds = ("png", "svg")
    assert set(files) == {
        f"{name}.{kind}" for name in ("courses", "parallel", "pareto", "importance") for kind in kinds
    }
    for name, data in files.items():
        if name.endswith("svg"):
            assert ElementTree.fromstring(data).tag.endswith("svg")
            continue
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert 0.005 < (pixels < 200).mean() < 0.5


def test_every_trial_is_a_line_of_its_own(tmp_path: Path) -> None:
    """Another trial changes the picture of courses; the same trials draw the same SVG."""
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [26, 27])
    one = draw_all(read_results(sweep))
    assert set(one) == {f"{n}.{k}" for n in ("courses", "parallel", "pareto") for k in ("png", "svg")}
    add_trial(sweep, 2, [25, 26.5])
    two = draw_all(read_results(sweep))
    assert two["courses.png"] != one["courses.png"]
    assert draw_all(read_results(sweep))["courses.png"] == two["courses.png"]


def test_a_sweep_without_any_validation_has_no_pictures_and_no_best(tmp_path: Path) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [], status="failed", reason="no such file")
    results = read_results(sweep)
    assert draw_all(results) == {}
    assert results.best is None
    assert results.failed[0].reason == "no such file"
    assert text_table(results).splitlines()[1].split()[:3] == ["-", "1", "-"]
    assert why_best(results) == "no trial reached a validation"


def test_a_folder_with_a_sweep_is_not_begun_again(tmp_path: Path) -> None:
    synthetic_sweep(tmp_path / "sweep")
    with pytest.raises(InputError, match="give --resume"):
        synthetic_sweep(tmp_path / "sweep")
    with pytest.raises(InputError, match="no sweep here"):
        SweepFolder.at(tmp_path / "other").card()
    (tmp_path / "sweep" / "sweep.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not readable"):
        SweepFolder.at(tmp_path / "sweep").card()
