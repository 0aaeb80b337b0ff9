"""Distillation in training: which teachers are refused, and how they reach the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_sr.errors import InputError, ModelError, RecipeError, ResourceError
from ray_sr.losses import build_content_losses
from ray_sr.models import build_generator
from ray_sr.recipes.losses import FeaturesSpec
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.store import Store
from ray_sr.training.compute import Compute
from ray_sr.training.teachers import check_teachers, place_teachers
from tests.test_cli import run

RECIPE = """
name: small
scale: 2
data: {crop: 16, batch: 4, crops_per_image: 1}
generator: {kind: compact, convs: 1, channels: 4}
pretrain: {steps: 1, losses: [{kind: l1}, {kind: distill, teacher: master}]}
"""
CPU = Compute(torch.device("cpu"), None, torch.channels_last)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A user's store with a teacher of scale 2 that has BatchNorm to fold."""
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path / "store"))
    torch.manual_seed(3)
    network = NetworkSpec(scale=2, generator=SRResNetSpec(blocks=1, channels=4))
    Store().publish("master", build_generator(network), network)
    return Store()


def test_a_teacher_of_the_store_reaches_the_loss(store: Store) -> None:
    recipe = parse_recipe(RECIPE)
    teachers = place_teachers(check_teachers(recipe), CPU)
    assert recipe.pretrain
    _, term = build_content_losses(recipe.pretrain.losses, FeaturesSpec(), teachers=teachers)
    lr, sr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = (sr - store.load("master").module(lr)).abs().mean()
    torch.testing.assert_close(term(sr, sr, lr), expected, rtol=1e-4, atol=1e-6)
    assert not any(weight.requires_grad for weight in term.parameters())


def test_a_recipe_without_distillation_opens_nothing() -> None:
    assert check_teachers(parse_recipe(RECIPE, ["pretrain.losses=[{kind: l1}]"])) == {}


def test_foreign_teachers_are_opened_by_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import torch\n\ndef load(name, scale):\n    return torch.nn.Upsample(scale_factor=scale)\n")
    ref = f"{file}:nearest:2"
    teachers = check_teachers(parse_recipe(RECIPE, [f"pretrain.losses.1.teacher={ref}"]))
    assert (teachers[ref].network, teachers[ref].weights) == (None, None)
    lr = torch.rand(1, 3, 4, 4)
    taught = place_teachers(teachers, CPU)[ref](lr)
    assert torch.equal(taught, lr.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_teacher_of_another_scale_is_refused() -> None:
    recipe = parse_recipe(RECIPE, ["scale=4"])
    with pytest.raises(RecipeError, match=r"pretrain\.losses\.1\.teacher: master enlarges by 2, this recipe by 4"):
        check_teachers(recipe)


def test_a_teacher_that_needs_more_memory_than_there_is_is_refused() -> None:
    recipe = parse_recipe(RECIPE, ["data.batch=4096", "data.crop=2048", "training.device=cpu"])
    with pytest.raises(ResourceError, match=r"master needs about \d+\.\d GiB for a batch and there are"):
        check_teachers(recipe)


@pytest.mark.parametrize(("teacher", "error"), [("nobody", ModelError), ("absent.safetensors", InputError)])
def test_an_absent_teacher_is_named(teacher: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=teacher):
        check_teachers(parse_recipe(RECIPE, [f"pretrain.losses.1.teacher={teacher}"]))


def test_recipes_check_looks_at_the_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("scale: 2", "scale: 4"))
    code, _, err = run("recipes", "check", str(file), capsys=capsys)
    assert code == 2
    assert "master enlarges by 2" in err
