"""Steps and validations of every recipe on a GPU that is not there: what fails, or makes the CPU wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ray_sr import losses
from ray_sr.images import sharpening
from ray_sr.perceptual.quality import DISTS, LPIPS
from ray_sr.perceptual.vgg import load_feature_network
from ray_sr.recipes.reader import load_recipe, parse_recipe, recipe_names
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState, _read
from ray_sr.training.steps import MicroBatch, build_step
from ray_sr.training.validation import Validator
from tests.fake_cuda import Streams, Waits, describe_card, fake_tensors, kept_settings, read_as
from tests.perceptual.test_quality import backbone, dists_heads
from tests.photos import noise
from tests.training.test_validation import held_out

CUDA = torch.device("cuda", 0)

HARDEST = """
name: hardest
scale: 2
data: {crop: 32, batch: 4, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
discriminator: {kind: srgan, channels: 4, hidden: 8}
pretrain:
  steps: 2
  losses: [{kind: l1}, {kind: chroma}, {kind: mean_colour}, {kind: histogram}, {kind: tv}]
  optimizer: {kind: muon}
gan:
  steps: 2
  losses: [{kind: perceptual, network: random, layers: {conv2_2: 1}, target: sharpened}]
  adversarial: {kind: bce, label_noise: 0.1, label_smoothing: 0.1, pause_above: 0.9}
training: {clip_gradients: 1, accumulate: 2}
"""


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU by its description; VGG's weights are as made up as all other values."""

    def made_up(network: str, layers: object, **options: object) -> object:
        return load_feature_network("random", layers, **{**options, "weights": None})  # type: ignore[arg-type]

    describe_card(monkeypatch)
    monkeypatch.setattr(losses, "load_lpips", lambda network, weights: made_up_lpips())
    monkeypatch.setattr(losses, "load_dists", lambda weights: made_up_dists())
    monkeypatch.setattr(losses, "load_feature_network", made_up)
    with kept_settings():
        yield
    sharpening._blur_matrix.cache_clear()


def made_up_lpips() -> LPIPS:
    """Of AlexNet: of the smaller ones the one that tests know; crops of 32 do."""
    with unset_fake_temporarily():
        return LPIPS("alex", backbone("alex"))


def made_up_dists() -> DISTS:
    with unset_fake_temporarily():
        return DISTS(backbone("vgg"), dists_heads())


def parts_of(recipe: Recipe, compute: Compute) -> list[MicroBatch]:
    """A batch of two crops for each part, as the stream hands it over: uint8, page-locked."""
    crop = recipe.data.crop
    found = []
    for number in range(recipe.training.accumulate):
        hr = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
        lr = torch.zeros(2, crop // recipe.scale, crop // recipe.scale, 3, dtype=torch.uint8)
        found.append(MicroBatch(compute.to_input(lr), compute.to_input(hr), number, 0.5))
    return found


def steps_through(recipe: Recipe) -> dict[str, list[str]]:
    """Two steps of each stage with all that belongs to them; what the CPU would have waited for when it is warm."""
    waited: dict[str, list[str]] = {}
    with fake_tensors():
        state = TrainState(recipe, Compute.of(recipe.training, CUDA))
        while not state.done:
            step, stage = build_step(state), state.stage
            for number in range(2):
                parts = parts_of(recipe, state.compute)
                with Waits() as waits:
                    found = step.run(parts, number)
                with Waits() as waits_of_average:
                    state.advance()
                # The first step fills caches, the last one ends the stage.
                waited.setdefault(stage, []).extend(waits.found if number else waits_of_average.found)
                assert {value.device for value in found.values()} == {CUDA}
                assert {weight.device for weight in state.ema.parameters()} <= {CUDA}
        assert state.snapshot().step == recipe.total_steps
    return waited


def shortened(name: str) -> Recipe:
    """Two steps of each stage, and networks as shallow as they can be: what is deep only repeats itself."""
    recipe = load_recipe(name)
    stages = [stage for stage in ("pretrain", "gan") if getattr(recipe, stage)]
    changes = [f"{stage}.{change}" for stage in stages for change in ("steps=2", "schedule={kind: constant}")]
    depths = [field for field in ("blocks", "convs") if field in type(recipe.generator).model_fields]
    return load_recipe(name, [*changes, *(f"generator.{field}=1" for field in depths)])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_steps_on_a_gpu_without_making_the_cpu_wait(name: str) -> None:
    assert set(map(tuple, steps_through(shortened(name)).values())) == {()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return held_out(tmp_path_factory.mktemp("held out"), noise(64, 72), noise(48, 64))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_validates_on_a_gpu(name: str, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what training set for the process as it was before, and tiles that come back from the GPU."""
    streams = Streams(monkeypatch)
    read_as(monkeypatch)
    recipe = shortened(name)
    compute = Compute.of(recipe.training, CUDA)
    validator = Validator(recipe, compute, shards, 0, 1)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.benchmark
    with fake_tensors():
        metrics, sample = validator.run(TrainState(recipe, compute).ema)
    assert streams.log.count("host waits for back") >= len(validator.pairs) > 0
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.benchmark) == before
    assert all(np.isfinite(value) for value in metrics.values())
    assert sample.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["gan.adversarial={kind: wasserstein, gradient_penalty: 10}"],
        ["gan.adversarial={kind: wasserstein, weight_clip: 0.01, critic_updates: 2}"],
        ["gan.adversarial={kind: relativistic}", "training.accumulate=1"],
        [
            "gan.adversarial={kind: relativistic, feature_matching: 10}",
            "discriminator={kind: multiscale, channels: 4}",
        ],
        ["discriminator={kind: patchgan, channels: 4, norm: spectral}", "gan.adversarial.feature_matching=10"],
        ["gan.losses=[{kind: ldl}, {kind: perceptual, network: random, layers: {conv2_2: 1}, compare: gram}]"],
        ["gan.losses=[{kind: perceptual, network: random, layers: {conv2_2: 1}, compare: contextual}]"],
        ["gan.losses=[{kind: dists}, {kind: lpips}]"],
        ["training.precision=fp32", "training.tf32=false", "training.deterministic=true"],
    ],
)
def test_no_loss_or_optimizer_makes_the_cpu_wait(changes: list[str]) -> None:
    assert steps_through(parse_recipe(HARDEST, changes)) == {"pretrain": [], "gan": []}


def test_waits_are_found() -> None:
    """What the test above rests on."""
    with fake_tensors():
        values = torch.zeros(3, device=CUDA)
        for slow in (lambda: torch.zeros(3).to(CUDA), lambda: values.new_tensor([1.0]), lambda: values.cpu()):
            with Waits() as waits:
                slow()
            assert waits.found
        with Waits() as waits:
            torch.zeros(3).to(CUDA, non_blocking=True).add_(values)
        assert not waits.found


def test_a_checkpoint_with_tensors_of_a_gpu_is_read_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker loads it on the CPU in any case: not all of them onto the first GPU, beside what is there."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save({"weights": torch.arange(3.0)}, tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "state.pt", weights_only=True)
    found = _read(tmp_path / "state.pt")["weights"]
    assert found.device.type == "cpu"
    assert torch.equal(found, torch.arange(3.0))
