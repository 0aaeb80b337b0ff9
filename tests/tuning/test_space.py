"""Search spaces: what they propose, and everything that is refused before any trial."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.tuning.space import Domain, Space, parse_duration, parse_space, read_space
from ray_sr.tuning.trial_recipe import check_space, trial_recipe, with_values

RECIPE = parse_recipe("""
name: small
scale: 2
data: {crop: 32, batch: 8}
generator: {kind: srresnet, blocks: 2, channels: 8}
discriminator: {kind: srgan, channels: 8}
pretrain: {steps: 100, losses: [{kind: l1}]}
gan: {steps: 100, losses: [{kind: l1}, {kind: tv, weight: 0.1}]}
validation: {every: 20}
""")

SPACE = """
fields:
  gan.generator_optimizer.lr: {loguniform: [1e-5, 1e-2]}
  gan.losses.1.weight: {uniform: [0.1, 0.5]}
  generator.blocks: {grid: [4, 8, 16]}
  generator.channels: {int: [8, 16]}
  data.flips: {choice: [true, false]}
budget: {trials: 12}
"""


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        check_space(parse_space(text, source="space.yaml"), RECIPE)
    return str(caught.value)


def test_values_lie_in_their_ranges_and_follow_their_distributions() -> None:
    rng = np.random.default_rng(0)
    rates = [Domain.model_validate({"loguniform": [1e-5, 1e-1]}).sample(rng) for _ in range(2000)]
    assert 1e-5 <= min(rates) < 2e-5
    assert 5e-2 < max(rates) <= 1e-1
    assert np.median(np.log10(rates)) == pytest.approx(-3, abs=0.15)
    even = [Domain.model_validate({"uniform": [2, 4]}).sample(rng) for _ in range(2000)]
    assert np.mean(even) == pytest.approx(3, abs=0.05)
    whole = [Domain.model_validate({"int": [1, 3]}).sample(rng) for _ in range(300)]
    assert set(whole) == {1, 2, 3}
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_a_plan_follows_from_its_seed_and_begins_like_a_shorter_one() -> None:
    space = parse_space(SPACE)
    plan = space.plan()
    assert plan == parse_space(SPACE).plan()
    assert plan[:5] == parse_space(SPACE, trials=5).plan()
    assert plan != parse_space(SPACE + "seed: 1").plan()
    assert len(plan) == 12


def test_grid_values_are_tried_equally_often() -> None:
    blocks = [values["generator.blocks"] for values in parse_space(SPACE).plan()]
    assert [blocks.count(n) for n in (4, 8, 16)] == [4, 4, 4]


def test_a_grid_search_is_every_combination_once() -> None:
    space = parse_space("{fields: {a: {choice: [1, 2]}, b: {grid: [x, y, z]}}, searcher: grid}")
    assert space.trials == 6
    assert sorted((values["a"], values["b"]) for values in space.plan()) == [
        (a, b) for a in (1, 2) for b in ("x", "y", "z")
    ]


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    assert parse_space("fields: {a: {choice: [1e-4, 3e-4]}}").fields["a"].values == (1e-4, 3e-4)


def test_a_space_is_the_same_after_being_written_and_read() -> None:
    space = parse_space(SPACE + "scheduler: {kind: asha, grace: 40}")
    assert Space.model_validate(space.dump()) == space


def test_command_line_budget_takes_the_place_of_the_spaces_own(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE, encoding="utf-8")
    space = read_space(path, trials=3, seconds=60)
    assert (space.trials, space.budget.time) == (3, 60)
    with pytest.raises(InputError, match="No such file"):
        read_space(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "15 minutes", "-5m", "0", "0s", "m", "1e400"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s"):
        parse_duration(text)


def test_a_trials_recipe_has_its_values_and_is_otherwise_the_recipe() -> None:
    values = parse_space(SPACE).plan()[0]
    recipe = with_values(RECIPE, values)
    assert recipe.generator.blocks == values["generator.blocks"]
    assert recipe.gan is not None
    assert recipe.gan.losses[1].weight == values["gan.losses.1.weight"]
    assert recipe.gan.generator_optimizer.lr == values["gan.generator_optimizer.lr"]
    restored = with_values(recipe, {name: _at(RECIPE.dump(), name) for name in values})
    assert restored == RECIPE


def _at(data: object, name: str) -> object:
    for part in name.split("."):
        data = data[int(part)] if isinstance(data, list) else data[part]  # type: ignore[index]
    return data


def test_whole_sections_can_be_values() -> None:
    family = {"kind": "compact", "convs": 4, "channels": 8}
    recipe = with_values(RECIPE, {"generator": family, "gan.generator_optimizer.betas": [0.5, 0.9]})
    assert recipe.generator.kind == "compact"
    assert recipe.gan is not None
    assert recipe.gan.generator_optimizer.betas == (0.5, 0.9)


def test_trials_save_and_listen_as_often_as_a_sweep_needs() -> None:
    recipe = trial_recipe(RECIPE, {})
    assert recipe.training.checkpoint_every == RECIPE.validation.every
    assert recipe.training.log_every == 2
    assert recipe.model_copy(update={"training": RECIPE.training}) == RECIPE


# ------------------------------------------------------------------------------------------- bad input


def test_a_field_that_does_not_exist_is_refused_with_its_nearest() -> None:
    assert "generator has no 'block', did you mean 'blocks'?" in refusal(
        "fields: {generator.block: {choice: [1, 2]}}"
    )
    assert "the recipe has no 'gn', did you mean 'gan'?" in refusal("fields: {gn.steps: {choice: [1, 2]}}")
    assert "gan.losses has no '7'" in refusal("fields: {gan.losses.7.weight: {uniform: [0, 1]}}")
    assert "data.batch is a single value" in refusal("fields: {data.batch.size: {choice: [8]}}")


def test_a_section_that_the_recipe_leaves_out_cannot_be_searched() -> None:
    recipe = parse_recipe("{name: one, pretrain: {steps: 50}, validation: {every: 10}}")
    space = parse_space("fields: {gan.generator_optimizer.lr: {uniform: [0.001, 0.01]}}")
    with pytest.raises(RecipeError, match="the recipe one has no gan: give it one"):
        check_space(space, recipe)


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("generator.blocks: {int: [4, 300]}", "should be less than or equal to 256 (got 300)"),
        ("generator.blocks: {choice: [4, four]}", "generator.blocks=four"),
        ("gan.generator_optimizer.lr: {loguniform: [1e-4, 3]}", "should be less than or equal to 1"),
        ("data.crop: {choice: [32, 33]}", "data.crop 33 is not a multiple of scale 2"),
        ("data.batch: {grid: [8, 10]}", "crops_per_image"),
    ],
)
def test_values_that_the_recipe_refuses_are_refused_before_any_trial(field: str, part: str) -> None:
    assert part in refusal(f"fields: {{{field}}}")


def test_every_wrong_value_is_named_at_once() -> None:
    lines = refusal("fields: {generator.blocks: {choice: [0, 4, 999]}, data.crop: {choice: [31]}}").splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("fields: {a: {loguniform: [2, 1]}}", "fields.a: the range [2, 1] is empty"),
        ("fields: {a: {loguniform: [0, 1]}}", "loguniform begins above 0"),
        ("fields: {a: {uniform: [1, .inf]}}", "finite"),
        ("fields: {a: {uniform: [1]}}", "uniform is [low, high]"),
        ("fields: {a: {int: [1, 2.5]}}", "whole numbers"),
        ("fields: {a: {choice: []}}", "choice takes a list"),
        ("fields: {a: {choice: [1, 2, 1]}}", "twice"),
        ("fields: {a: {logunifrom: [1, 2]}}", "did you mean 'loguniform'?"),
        ("fields: {a: 3}", "write one of loguniform"),
        ("fields: {}", "at least 1"),
        ("budget: {trials: 3}", "fields: required"),
        ("fields: {a: {choice: [1]}}\nsearchr: grid", "did you mean 'searcher'? [space.yaml:2]"),
        ("fields: {a: {choice: [1]}}\nscheduler: ahsa", "did you mean 'asha'?"),
        ("fields: {a: {choice: [1]}}\nscheduler: {kind: pbt, grace: 5}", "grace and reduction belong to asha"),
        ("fields: {a: {choice: [1]}}\nbudget: {trials: 0}", "budget.trials: should be greater than or equal to 1"),
        ("fields: {a: {choice: [1]}}\nbudget: {time: 0m}", "budget.time"),
        ("fields: {a: {choice: [1]}}\nobjective: {metric: psnr}", "did you mean 'psnr_y'?"),
        ("fields: {a: {uniform: [1, 2]}}\nsearcher: grid", "a needs choice or grid"),
        ("{fields: {a: {choice: [1, 2]}}, searcher: grid, budget: {trials: 1}}", "2 combinations"),
        ("fields: {generator.blocks: {uniform: [1, 2]}}\nscheduler: pbt", "cannot be searched by it"),
        ("[1, 2]", "a space is a mapping"),
        ("fields: [", "not YAML"),
    ],
)  # fmt: skip
def test_wrong_spaces_are_refused_in_one_line(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_space(text, source="space.yaml")
    assert part in str(caught.value)
    assert "[space.yaml" in str(caught.value)


def test_the_line_is_that_of_the_wrong_value_also_where_its_key_stands_elsewhere_too() -> None:
    objective = "objective:\n  prefer: speed\n  metric: kind\n"
    text = "fields:\n  a: {choice: [1]}\nscheduler: {kind: asha}\n" + objective + "seed: a\n"
    with pytest.raises(RecipeError) as caught:
        parse_space(text, source="space.yaml")
    assert [line.rpartition(" ")[2] for line in str(caught.value).splitlines()] == [
        "[space.yaml:6]",
        "[space.yaml:7]",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nfields: {a: {choice: [1]}}\nseed: 2", "seed: given twice, first in line 1 [space.yaml:3]"),
        (
            "fields:\n  a: {choice: [1]}\n  a: {choice: [2]}",
            "fields.a: given twice, first in line 2 [space.yaml:3]",
        ),
        ("fields: &f\n  a: *f", "fields.a: an alias within what it stands for [space.yaml:2]"),
    ],
)
def test_yaml_that_python_would_take_in_silence_is_refused(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_space(text, source="space.yaml")
    assert str(caught.value) == part


def test_a_wrong_option_is_named_and_not_a_line_of_the_file() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_space("fields: {a: {choice: [1]}}\nbudget: {trials: 3}", trials=20_000, source="space.yaml")
    assert str(caught.value) == "budget.trials: should be less than or equal to 10000 (got 20000) [option --trials]"


def test_a_scheduler_needs_validations_before_the_end() -> None:
    late = RECIPE.model_copy(update={"validation": RECIPE.validation.model_copy(update={"every": 200})})
    space = parse_space("{fields: {generator.blocks: {choice: [1, 2]}}, scheduler: asha}")
    check_space(space, RECIPE)
    with pytest.raises(RecipeError, match=r"validation\.every=25"):
        check_space(space, late)
    grace = parse_space("{fields: {generator.blocks: {choice: [1]}}, scheduler: {kind: asha, grace: 200}}")
    with pytest.raises(RecipeError, match=r"scheduler\.grace 200 is not before the last step 200"):
        check_space(grace, RECIPE)


def test_trials_without_validation_photos_cannot_be_compared() -> None:
    blind = RECIPE.model_copy(update={"validation": RECIPE.validation.model_copy(update={"photos": 0})})
    with pytest.raises(RecipeError, match=r"validation\.photos is 0"):
        check_space(parse_space("fields: {generator.blocks: {choice: [1]}}"), blind)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "tune").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_spaces_that_come_along_fit_the_recipe_they_name(path: Path) -> None:
    from ray_sr.recipes.reader import load_recipe

    text = path.read_text(encoding="utf-8")
    name = text.split("ray-sr tune -c ")[1].split()[0]
    check_space(parse_space(text), load_recipe(name))
    assert math.isfinite(parse_space(text).trials)


def test_a_grid_is_counted_without_being_made() -> None:
    fields = ", ".join(f"f{number}: {{grid: {list(range(30))}}}" for number in range(6))
    with pytest.raises(RecipeError, match=r"the grid has 729,000,000 combinations, at most 10,000 are tried"):
        parse_space(f"{{fields: {{{fields}}}, searcher: grid}}")
    random = parse_space(f"{{fields: {{{fields}}}, budget: {{trials: 3}}}}")  # grid fields of a random search
    assert [values["f5"] for values in random.plan()] == [0, 1, 2]


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 3), (4, 1, 3)])
def test_a_grid_is_every_combination_once_the_last_field_first(sizes: tuple[int, ...]) -> None:
    fields = {f"f{number}": list(range(size)) for number, size in enumerate(sizes)}
    listed = ", ".join(f"{name}: {{grid: {values}}}" for name, values in fields.items())
    space = parse_space(f"{{fields: {{{listed}}}, searcher: grid}}")
    expected = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    assert space.plan() == expected
    assert space.trials == len(expected)
    twice = parse_space(f"{{fields: {{{listed}}}, budget: {{trials: {2 * len(expected)}}}}}")
    assert twice.plan() == expected * 2


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        ("scale: {choice: [2, 4]}", True),
        ("validation.photos: {choice: [2, 16]}", True),
        ("degradation.0.method: {choice: [bicubic, area]}", True),
        ("data.shards: {choice: [a, b]}", True),
        ("generator.blocks: {choice: [1, 2]}", False),
        ("pretrain.optimizer.lr: {loguniform: [1e-4, 1e-3]}", False),
        ("seed: {choice: [1, 2]}", False),
    ],
)
def test_trials_are_measured_on_the_same_pictures(field: str, refused: bool) -> None:
    """Else a sweep over the scale finds that x2 is better than x4."""
    recipe = parse_recipe(
        "{name: t, scale: 2, data: {crop: 32, batch: 4, shards: a}, generator: {kind: srresnet, blocks: 1}, "
        "pretrain: {steps: 100, losses: [{kind: l1}]}, degradation: [{kind: downscale, method: bicubic}]}"
    )
    space = parse_space(f"fields:\n  {field}\n")
    if not refused:
        check_space(space, recipe)
        return
    with pytest.raises(RecipeError, match="would be measured on other pictures"):
        check_space(space, recipe)
