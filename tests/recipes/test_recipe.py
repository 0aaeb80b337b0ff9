"""Reading recipes: defaults, overrides, and every error with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.losses import LossSpec
from ray_sr.recipes.reader import load_recipe, parse_recipe, recipe_names, recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.reference import reference_page

GOOD = """
name: good
scale: 4
generator: {kind: srresnet, blocks: 4}
discriminator: {kind: vgg}
data: {crop: 96, batch: 8}
pretrain:
  steps: 10
  optimizer: {lr: 1e-4}
gan:
  steps: 5
  losses:
    - {kind: l1, weight: 0.01}
    - {kind: perceptual, layers: {conv5_4: 1}}
"""


def errors_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides, source="my.yaml")
    return str(caught.value).splitlines()


def test_defaults_and_written_values() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.pretrain is not None
    assert recipe.pretrain.optimizer.lr == 1e-4  # PyYAML reads 1e-4 as text
    assert recipe.training.ema == 0.999
    assert recipe.total_steps == 15


def test_misspelled_key_wrong_type_and_bad_range_are_all_told_with_their_lines() -> None:
    text = "name: bad\ngenerator:\n  kind: srresnet\n  block: 3\n  channels: many\npretrain:\n  steps: 0\n"
    errors = errors_of(text)
    assert len(errors) == 3
    assert any("generator.block: unknown key, did you mean 'blocks'? [my.yaml:4]" in e for e in errors)
    assert any(e.startswith("generator.channels:") and e.endswith("[my.yaml:5]") for e in errors)
    assert any(e.startswith("pretrain.steps:") and "(got 0)" in e and e.endswith("[my.yaml:7]") for e in errors)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.batch=0"], "data.batch: should be greater than or equal to 1 (got 0) [override data.batch=0]"),
        (["generater.kind=x"], "generater: unknown key, did you mean 'generator'? [override generater.kind=x]"),
        (["gan.losses.1.kind=perceptul"], "did you mean 'perceptual'"),
        (["gan.losses.7.weight=1"], "there is nothing at 7"),
        (["gan.losses.1.layers={conv6_1: 1}"], "no layer 'conv6_1'"),
        (["nonsense"], "is not key=value"),
        (["training.device=gpuu"], "did you mean 'gpu'"),
        (["generator={blocks: 3}"], "say which kind: srresnet"),
    ],
)
def test_wrong_overrides_are_named(overrides: list[str], expected: str) -> None:
    assert expected in "\n".join(errors_of(GOOD, *overrides))


def test_overrides_reach_into_lists_and_new_sections() -> None:
    recipe = parse_recipe(GOOD, ["gan.losses.0.weight=2", "validation.every=7", "gan.losses.2={kind: tv}"])
    assert recipe.gan is not None
    assert [loss.kind for loss in recipe.gan.losses] == ["l1", "perceptual", "tv"]
    assert recipe.gan.losses[0].weight == 2
    assert recipe.validation.every == 7


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["discriminator=null"], "needs a discriminator"),
        (["generator={kind: deblurgan}"], "deblurgan has no x4: it offers x1"),
        (["data.crop=98"], "data.crop 98 is not a multiple of scale 4"),
        (["discriminator.input_size=128"], "made for 128 px, data.crop is 96"),
        (["data.crop=16"], "vgg needs data.crop 32 or more, not 16"),
        (["training.workers=3"], "cannot be divided among training.workers 3"),
        (["training.accumulate=3"], "among training.workers 1 with training.accumulate 3"),
        (["training.min_workers=2"], "min_workers 2 is more than training.workers 1"),
        (["training.min_workers=1", "training.sync_batchnorm=true"], "unequal parts of a batch"),
        (["training.accumulate=2", "training.sync_batchnorm=true"], "a part of the batch at a time"),
        (["training.compile=true", "gan.adversarial.gradient_penalty=10"], "no second derivatives"),
        (["training.workers=2", "training.gpus_per_worker=0.5"], "NCCL needs a whole GPU"),
        (["data.crops_per_image=3"], "crops_per_image 3 does not divide"),
        (["degradation=[{kind: jpeg}]"], "needs one downscale or second_order step"),
        (["pretrain.schedule={kind: multistep}"], "needs milestones"),
        (["pretrain=null", "gan=null"], "no stage"),
        (["gan.adversarial={kind: hinge, label_noise: 0.1}"], "hinge has no labels"),
        (["gan.losses.1={kind: perceptual, network: vgg16}"], "VGG16 has no conv5_4"),
        (["degradation=[{kind: downscale}, {kind: noise, sigma: [9, 1]}]"], "upside down"),
    ],
)
def test_what_cannot_go_together_is_refused(overrides: list[str], expected: str) -> None:
    assert expected in "\n".join(errors_of(GOOD, *overrides))


def test_a_key_given_twice_is_refused() -> None:
    assert errors_of("name: a\npretrain: {steps: 1}\nname: b") == ["name: given twice, first in line 1 [my.yaml:3]"]


@pytest.mark.parametrize("text", ["a: [", "just words", "- 1\n- 2"])
def test_text_that_is_no_recipe_is_one_line(text: str) -> None:
    assert len(errors_of(text)) == 1


def test_written_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = parse_recipe(GOOD)
    file = tmp_path / "Ünïcode.yaml"
    file.write_text(recipe_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(file)) == recipe


def test_every_shipped_recipe_is_right_and_described() -> None:
    assert recipe_names()
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description


def test_unknown_recipe_name_gets_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean 'srgan-paper-x4'"):
        load_recipe("srgan-papr-x4")


def test_missing_recipe_file() -> None:
    with pytest.raises(InputError, match="No such file"):
        load_recipe("nowhere/recipe.yaml")


def test_schema_accepts_what_the_reader_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Recipe.model_json_schema()
    jsonschema.validate(parse_recipe(GOOD).dump(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse_recipe(GOOD).dump() | {"surplus": 1}, schema)


def test_every_field_has_a_description_for_the_reference() -> None:
    schema = json.dumps(TypeAdapter(LossSpec).json_schema())
    assert "feature network" in schema
    for model in Recipe.model_json_schema()["$defs"].values():
        for name, field in model.get("properties", {}).items():
            documented = "description" in field or "$ref" in field or name == "kind" or "const" in field
            assert documented, f"{model['title']}.{name} has no description"


def test_importing_the_package_is_light() -> None:
    code = "import sys, ray_sr, ray_sr.cli; print([m for m in ('torch', 'ray', 'pyvips') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reference_page_is_up_to_date() -> None:
    """Made anew by `ray-sr recipes reference > docs/recipe.md`."""
    committed = Path(__file__).parents[2] / "docs" / "recipe.md"
    assert committed.read_text(encoding="utf-8") == reference_page()


@pytest.mark.parametrize("text", ["a: " + "[" * 3000, "{a: " * 3000, "- " * 3000])
def test_yaml_that_is_nested_too_deeply_is_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"nested more deeply than any recipe is \[deep\.yaml\]"):
        parse_recipe(text, source="deep.yaml")
    with pytest.raises(RecipeError, match="is not a YAML value") as caught:
        load_recipe("demo", [f"name={text}"])
    assert len(str(caught.value)) < 400


def test_of_long_values_the_begin_is_shown() -> None:
    with pytest.raises(RecipeError, match=r"at most 64 characters \(got 'xxx.*…\)") as caught:
        load_recipe("demo", [f"name={'x' * 100_000}"])
    assert len(str(caught.value)) < 400


def test_yaml_with_a_nul_is_one_line() -> None:
    with pytest.raises(RecipeError, match="not YAML: unacceptable character") as caught:
        parse_recipe("name: \0")
    assert "\n" not in str(caught.value)


def test_aliases_that_stand_for_billions_of_values_are_refused_before_they_are_written_out() -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghij")]
    with pytest.raises(RecipeError, match=r"more than 100,000 values, with its aliases written out \[bomb\.yaml\]"):
        parse_recipe("\n".join(lines), source="bomb.yaml")
