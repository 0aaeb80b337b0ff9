"""Starting from a published model: all weights, or those that fit another scale; never another network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ray_sr.errors import ModelError, RecipeError
from ray_sr.losses import build_content_losses
from ray_sr.models import build_generator
from ray_sr.models.weights import save_weights
from ray_sr.recipes.losses import FeaturesSpec, PixelLossSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import Store
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState
from ray_sr.training.steps import MicroBatch, PretrainStep
from ray_sr.training.warm_start import initial_discriminator, initial_weights, network_of
from tests.photos import real_photos
from tests.shared_data import shared_folder

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


# --------------------------------------------------------------------------------------------- fine-tuning


def test_a_file_keeps_its_network_in_any_recipe(tmp_path: Path) -> None:
    """What `train --init FILE` puts before the user's own overrides."""
    network = parse_recipe(RECIPE, ["scale=2", "generator={kind: compact, convs: 2, channels: 8}"]).network
    module = build_generator(network)
    torch.save({"params": module.state_dict()}, tmp_path / "theirs.PTH")
    recipe = parse_recipe(RECIPE, network_of(str(tmp_path / "theirs.PTH")))
    assert recipe.network == network
    assert recipe.init == str(tmp_path / "theirs.PTH")
    start = initial_weights(recipe.init, recipe)
    assert (start.new, start.skipped) == ([], [])


def test_weights_of_the_same_architecture_that_do_not_fit_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("spandrel")
    deep = "generator={kind: spandrel, architecture: RealPLKSR, options: {dim: 16, n_blocks: 2, kernel_size: 5}}"
    network = parse_recipe(RECIPE, [deep]).network
    file = str(tmp_path / "deep.safetensors")
    save_weights(file, build_generator(network), network)
    recipe = parse_recipe(RECIPE, [deep.replace("n_blocks: 2", "n_blocks: 1")])
    start = initial_weights(file, recipe)
    assert start.skipped
    assert all(name.startswith(("feats.2.", "feats.4.")) for name in start.skipped)  # a block, and what follows
    assert start.new == ["feats.3.weight", "feats.3.bias"]
    assert "weights do not fit and are left out: feats.2" in caplog.text
    state = _state(recipe)
    state.load_generator(start.weights)
    assert torch.equal(state.generator.state_dict()["feats.0.weight"], start.weights["feats.0.weight"])
    other = parse_recipe(RECIPE, ["generator={kind: spandrel, architecture: SPAN}"])
    with pytest.raises(ModelError, match="is not the recipe's generator"):
        initial_weights(file, other)


GAN = ["pretrain=null", "gan={steps: 1, losses: [{kind: l1}]}", "discriminator={kind: unet, channels: 4}"]


def test_the_discriminator_starts_from_a_file_or_a_checkpoint(tmp_path: Path) -> None:
    state = _state(parse_recipe(RECIPE, GAN))
    assert state.discriminator
    torch.save({"params": state.discriminator.state_dict()}, tmp_path / "net_d.pth")
    state.snapshot().write(tmp_path)
    for place in (tmp_path / "net_d.pth", tmp_path):
        recipe = parse_recipe(RECIPE, [*GAN, f"init_discriminator={place}", "seed=5"])
        weights = initial_discriminator(recipe)
        assert weights
        other = _state(recipe)
        other.load_discriminator(weights)
        assert other.discriminator
        for name, value in state.discriminator.state_dict().items():
            assert torch.equal(other.discriminator.state_dict()[name], value)
    wider = parse_recipe(RECIPE, [*GAN, "discriminator.channels=8", f"init_discriminator={tmp_path}"])
    with pytest.raises(ModelError, match="belong to another network"):
        initial_discriminator(wider)
    with pytest.raises(RecipeError, match="init_discriminator needs a discriminator"):
        parse_recipe(RECIPE, ["init_discriminator=x.pth"])


@pytest.mark.nightly
def test_a_public_model_gains_on_the_degradation_it_is_tuned_for() -> None:
    """100 steps of L1 on bicubic pairs: realesr-general-x4v3 was trained to look well, on worse photographs."""
    file = shared_folder("data/peers") / "realesr_general_x4v3.pth"
    text = RECIPE.replace("crop: 32, batch: 1", "crop: 64, batch: 4").replace("steps: 1}", "steps: 100}")
    recipe = parse_recipe(text, [*network_of(str(file)), "pretrain.optimizer.lr=1e-4", "training.ema=0.9"])
    state = _state(recipe)
    state.load_generator(initial_weights(str(file), recipe).weights)
    photos = real_photos()
    held_out = photos.pop("chelsea")[:240, :240]
    before = _psnr(state.ema, held_out)
    losses = build_content_losses([PixelLossSpec()], FeaturesSpec())
    assert state.generator_optimizer
    step = PretrainStep(state.generator, state.generator_optimizer, losses, state.compute)
    rng = np.random.default_rng(1)
    for number in range(100):
        hr = np.stack([_crop(photo, rng) for photo in [*photos.values(), photos["coffee"]]])
        step.run([MicroBatch(_quarter(hr), _batch(hr))], number)
        state.advance()
    after = _psnr(state.ema, held_out)
    print(f"PSNR of the held-out photo: {before:.2f} dB before, {after:.2f} dB after 100 steps")
    assert after > before + 0.5


def _crop(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(0, side - 64)) for side in photo.shape[:2])
    return photo[top : top + 64, left : left + 64]


def _batch(hr: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(hr).permute(0, 3, 1, 2).float() / 255


def _quarter(hr: np.ndarray) -> torch.Tensor:
    small = F.interpolate(_batch(hr), scale_factor=0.25, mode="bicubic", antialias=True)
    return (small * 255).round().clamp(0, 255) / 255


@torch.inference_mode()
def _psnr(network: torch.nn.Module, photo: np.ndarray) -> float:
    """Of all values but four at each border, in dB."""
    difference = (network(_quarter(photo[None])).clamp(0, 1) - _batch(photo[None]))[..., 4:-4, 4:-4]
    return -10 * float(difference.square().mean().log10())
