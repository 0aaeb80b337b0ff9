"""Starting from a published model: all weights, or those that fit another scale; never another network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_sr.errors import ModelError
from ray_sr.models import build_generator
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import Store
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState
from ray_sr.training.warm_start import initial_weights

RECIPE = """
name: small
data: {crop: 32, batch: 1, crops_per_image: 1}
generator: {kind: msrresnet, blocks: 1, channels: 8}
pretrain: {steps: 1}
"""


@pytest.fixture
def ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A published x4 generator of the recipe, in the user's store."""
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path / "store"))
    torch.manual_seed(7)
    network = parse_recipe(RECIPE, []).network
    return "base@" + Store().publish("base", build_generator(network), network)


def _state(recipe: Recipe) -> TrainState:
    return TrainState(recipe, Compute.of(recipe.training, torch.device("cpu")))


def test_the_same_network_takes_all_weights(ref: str) -> None:
    recipe = parse_recipe(RECIPE, [])
    start = initial_weights("base", recipe)
    assert (str(start), start.new) == (ref, [])
    state = _state(recipe)
    state.load_generator(start.weights)
    for network in (state.generator, state.ema):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, start.weights[name])


def test_another_scale_takes_what_fits(ref: str) -> None:
    start = initial_weights("base", parse_recipe(RECIPE, ["scale=8"]))
    assert start.new == ["upconv3.weight", "upconv3.bias"]  # x4 is two pixel shuffles, x8 three
    assert initial_weights("base", parse_recipe(RECIPE, ["scale=2"])).new == []
    recipe = parse_recipe(RECIPE, ["scale=3", "data.crop=48"])
    start = initial_weights("base", recipe)
    assert start.new == ["upconv1.weight", "upconv1.bias"]  # four channels for each at x2, nine at x3
    assert str(start) == f"{ref}, but for upconv1.weight, upconv1.bias"
    state = _state(recipe)
    drawn = {name: value.clone() for name, value in state.generator.state_dict().items()}
    state.load_generator(start.weights)
    for name, value in state.generator.state_dict().items():
        torch.testing.assert_close(value, drawn[name] if name in start.new else start.weights[name])


@pytest.mark.parametrize("other", ["generator.blocks=2", "generator.channels=16", "value_range=signed"])
def test_another_network_is_refused(ref: str, other: str) -> None:
    with pytest.raises(ModelError, match="init base: msrresnet x4 is not the recipe's generator, msrresnet x4"):
        initial_weights("base", parse_recipe(RECIPE, [other]))
