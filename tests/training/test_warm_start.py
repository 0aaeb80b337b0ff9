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


DEEP = ["generator.blocks=5"]


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights of a published generator of five blocks, called deep."""
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path / "store"))
    torch.manual_seed(7)
    network = parse_recipe(RECIPE, DEEP).network
    module = build_generator(network)
    Store().publish("deep", module, network)
    return module.state_dict()


@pytest.mark.parametrize(
    ("override", "kept"),
    [("init=deep", [0, 2, 4]), ("init_blocks=[0, 3, 4]", [0, 3, 4]), ("init_blocks=[1, 2, 3]", [1, 2, 3])],
)
def test_a_deeper_network_gives_some_of_its_blocks(
    deep: dict[str, torch.Tensor], override: str, kept: list[int]
) -> None:
    start = initial_weights("deep", parse_recipe(RECIPE, ["generator.blocks=3", override]))
    assert start.new == []
    assert torch.equal(start.weights["conv_first.weight"], deep["conv_first.weight"])
    for number, block in enumerate(kept):
        for name in ("conv1.weight", "conv2.bias"):
            assert torch.equal(start.weights[f"body.{number}.{name}"], deep[f"body.{block}.{name}"])


def test_blocks_of_span_are_counted_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path / "store"))
    span = "generator={kind: span, channels: 4, blocks: 3}"
    network = parse_recipe(RECIPE, [span]).network
    module = build_generator(network)
    Store().publish("three", module, network)
    shorter = ["generator={kind: span, channels: 4, blocks: 2}", "init_blocks=[0, 2]"]
    start = initial_weights("three", parse_recipe(RECIPE, shorter))
    assert start.new == []
    name = "c1_r.conv.1.weight"
    assert torch.equal(start.weights[f"block_1.{name}"], module.state_dict()[f"block_1.{name}"])
    assert torch.equal(start.weights[f"block_2.{name}"], module.state_dict()[f"block_3.{name}"])


@pytest.mark.parametrize("blocks", ["[0]", "[0, 1, 5]", "[2, 1, 0]", "[1, 1, 2]", "[-1, 0, 1]"])
def test_blocks_that_are_not_there_are_refused(deep: dict[str, torch.Tensor], blocks: str) -> None:
    recipe = parse_recipe(RECIPE, ["generator.blocks=3", f"init_blocks={blocks}"])
    with pytest.raises(ModelError, match="name 3 blocks of init deep in rising order, each from 0 to 4"):
        initial_weights("deep", recipe)
