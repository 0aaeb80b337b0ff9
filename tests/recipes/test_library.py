"""Every recipe that ships: sizes of its networks, what its data look like, and a short training on real photos."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ray_sr.data.crops import CropPlan, SubImage, Visit, make_crops
from ray_sr.degradations import degrade
from ray_sr.errors import RecipeError
from ray_sr.evaluation import evaluate
from ray_sr.images import Photo
from ray_sr.losses import ContentLoss, build_content_losses
from ray_sr.models import build_discriminator, build_generator, count_parameters
from ray_sr.recipes.degradations import DownscaleSpec
from ray_sr.recipes.reader import load_recipe, recipe_names
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.training import GanSpec, PretrainSpec
from ray_sr.store import load_model
from ray_sr.training.compute import Compute
from ray_sr.training.optimizer import GuardedOptimizer
from ray_sr.training.state import GENERATOR_FILE, PRETRAINED_FILE, TrainState, step_seed
from ray_sr.training.steps import GanStep, Losses, MicroBatch, PretrainStep, build_step
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.photos import upscale_photo
from tests.perceptual.test_vgg import synthetic_vgg
from tests.photos import real_photos

PRETRAIN_STEPS, GAN_STEPS, GAN_STEPS_AFTER_PRETRAIN = 80, 20, 3
SMALLER = {
    "srresnet": {"blocks": 1, "channels": 16},
    "msrresnet": {"blocks": 1, "channels": 64},
    "rrdbnet": {"blocks": 1, "channels": 16, "growth": 8},
    "compact": {"convs": 2, "channels": 16},
    "upresnet": {"blocks": 1, "channels": 16},
    "deblurgan": {"blocks": 1, "channels": 8},
    "srgan": {"channels": 8, "hidden": 16},
    "vgg": {"channels": 8, "hidden": 16, "input_size": 32},
    "tiny": {},
    "patchgan": {"channels": 8},
    "unet": {"channels": 8},
    "dense_critic": {"channels": 8, "hidden": 16},
}
CPU = Compute(torch.device("cpu"), None, torch.channels_last)

every_recipe = pytest.mark.parametrize("name", recipe_names())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The networks here are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------- networks

SRRESNET = {"trainable": 1_547_350, "buffers": 33 * 128}  # 33 BatchNorm layers of 64 channels
RRDBNET = {"trainable": 16_697_987, "buffers": 0}
# DeblurGAN's table adds scales and offsets to the InstanceNorm form, and statistics, for so many channels.
NORMALISED = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64
# The table of the dense critic: convolutions, BatchNorm from the second on, dense ends on a map of 16x16.
CRITIC_WIDTHS = (64, 64, 128, 256, 512, 1)
CRITIC_CONVOLUTIONS = sum((16 * before + 3) * after for before, after in pairwise(CRITIC_WIDTHS))
CRITIC = (16 * 3 + 1) * 64 + CRITIC_CONVOLUTIONS + (16 * 16 + 1) * 1024 + 1024 + 1
# The SRGAN paper's discriminator of half the width, a dense layer of 100: convolutions, BatchNorm, dense on 6x6.
HALF_SRGAN_WIDTHS = (32, 32, 64, 64, 128, 128, 256, 256)
HALF_SRGAN = (
    *(9 * 3 * 32 + 32, sum(9 * before * after for before, after in pairwise(HALF_SRGAN_WIDTHS))),
    *(2 * sum(HALF_SRGAN_WIDTHS[1:]), 36 * 256 * 100 + 100, 100 + 1),
)
LIGHT = {"trainable": 1_792 + 16 * 73_856 + 27_696, "buffers": 0}  # first, blocks, last
SEVEN_BLOCKS = {"trainable": 1_792 + 7 * 73_856 + 27_696, "buffers": 0}
HALF_UNET = 896 + 16 * (32 * 64 + 64 * 128 + 128 * 256) + 9 * (256 * 128 + 128 * 64 + 64 * 32 + 2 * 32 * 32) + 289
HALF_CONVOLUTIONS = 4_736 + 18_496 + 73_856 + 6 * 2 * 147_584 + 73_792 + 18_464 + 4_707
GENERATORS = {
    "keras-gan-x2": {"trainable": 595_395, "buffers": 1_024},
    "srgan-bce-x4": SRRESNET,
    "srgan-paper-x4": SRRESNET,
    "srgan-mae-jpeg-x4": SRRESNET,
    "srresnet-x4": SRRESNET,
    "msrresnet-x4": {"trainable": 1_517_571, "buffers": 0},
    "light-x4": LIGHT,
    "light-gan-x4": LIGHT,
    "finetune": LIGHT,
    "light-jpeg-x4": LIGHT,
    "clean-x4": SEVEN_BLOCKS,
    "real-x4": SEVEN_BLOCKS,
    "gan-x4": SEVEN_BLOCKS,
    "clean-x2": {"trainable": 1_792 + 7 * 73_856 + 6_924, "buffers": 0},
    "light-x2": {"trainable": 1_792 + 16 * 73_856 + 6_924, "buffers": 0},
    "msrgan-x4": {"trainable": 1_517_571, "buffers": 0},
    "esrgan-x4": RRDBNET,
    "realesrgan-x4": RRDBNET,
    "compact-x4": {"trainable": 621_424, "buffers": 0},
    "light-compact-x4": {"trainable": 621_424, "buffers": 0},
    "deblurgan": {"trainable": 11_378_179, "buffers": 0},
    "deblurgan-wgan": {"trainable": 11_378_179 + 2 * NORMALISED, "buffers": 2 * NORMALISED},
    "deblur-light": {"trainable": HALF_CONVOLUTIONS, "buffers": 0},
}
DISCRIMINATORS = {
    "keras-gan-x2": 1_857,
    "srgan-bce-x4": 23_563_649,
    "srgan-paper-x4": 23_563_649,
    "srgan-mae-jpeg-x4": 23_563_649,
    "light-gan-x4": sum(HALF_SRGAN),
    "finetune": 1_094_817,
    "real-x4": HALF_UNET,
    "gan-x4": HALF_UNET,
    "msrgan-x4": 14_499_401,
    "esrgan-x4": 14_499_401,
    "realesrgan-x4": 4_376_897,
    "compact-x4": 4_376_897,
    "deblurgan": 2_764_737,
    "deblurgan-wgan": CRITIC,
    "deblur-light": (16 * 3 + 1) * 32 + 16 * 32 * (64 + 2 * 128 + 4 * 256) + 64 + 128 + 256 + 16 * 256 + 1,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_networks_have_the_sizes_of_their_sources(name: str) -> None:
    recipe = load_recipe(name)
    counts = count_parameters(build_generator(recipe.network))
    assert counts == {"parameters": sum(GENERATORS[name].values()), **GENERATORS[name]}
    assert (recipe.discriminator is None) == (name not in DISCRIMINATORS)
    if recipe.discriminator:
        critic = build_discriminator(recipe.discriminator, recipe.data.crop, recipe.value_range)
        assert count_parameters(critic)["trainable"] == DISCRIMINATORS[name]


def test_every_recipe_but_the_demo_is_counted() -> None:
    assert set(recipe_names()) == {"demo", *GENERATORS}


# ----------------------------------------------------------------------------------------------- data


@functools.cache
def photos() -> list[np.ndarray]:
    return list(real_photos().values())


def crops(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """LR and HR, uint8 N×H×W×3, of each photo as many crops as the recipe cuts at a time."""
    visits = [Visit(number, 0, *pixels.shape[:2]) for number, pixels in enumerate(photos())]
    return make_crops(visits, [SubImage(pixels) for pixels in photos()], CropPlan.of(recipe))


@every_recipe
def test_crops_come_in_the_sizes_that_the_networks_expect(name: str) -> None:
    recipe = load_recipe(name)
    lr, hr = crops(recipe)
    count, side = len(photos()) * recipe.data.crops_per_image, recipe.data.crop
    assert hr.shape == (count, side, side, 3)
    assert lr.shape == (count, side // recipe.scale, side // recipe.scale, 3)
    assert lr.dtype == hr.dtype == np.uint8


@pytest.mark.parametrize(
    "name",
    [
        "srgan-mae-jpeg-x4",
        "realesrgan-x4",
        "compact-x4",
        "deblurgan",
        "deblurgan-wgan",
        "light-jpeg-x4",
        "deblur-light",
    ],
)
def test_photos_lose_more_than_by_bicubic_where_a_recipe_promises_it(name: str) -> None:
    recipe = load_recipe(name)
    lr, hr = crops(recipe)
    generators = [np.random.default_rng(0)] * len(hr)
    clean = degrade(hr, [DownscaleSpec()], recipe.scale, generators) if recipe.scale > 1 else hr
    changed = np.abs(lr.astype(float) - clean).mean(axis=(1, 2, 3))
    assert np.median(changed) > 1


# ------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made-up weights in the layout of torchvision's files."""
    folder = tmp_path_factory.mktemp("weights")
    files = {name: folder / f"{name}.pth" for name in ("vgg16", "vgg19")}
    for name, file in files.items():
        torch.save(synthetic_vgg(name).state_dict(prefix="features."), file)
    return files


def stages(recipe: Recipe) -> list[PretrainSpec | GanSpec]:
    return [stage for stage in (recipe.pretrain, recipe.gan) if stage]


def small(name: str, vgg_files: dict[str, Path]) -> Recipe:
    """The recipe with its own kinds of networks, losses and degradations, small and short."""
    recipe = load_recipe(name)
    overrides = ["data.crop=32", "data.batch=4", "data.crops_per_image=1", "training.ema=0.9"]
    for part in ("generator", "discriminator"):
        if spec := getattr(recipe, part):
            overrides += [f"{part}.{key}={value}" for key, value in SMALLER[spec.kind].items()]
    gan_steps = GAN_STEPS_AFTER_PRETRAIN if recipe.pretrain else GAN_STEPS
    for stage, optimizer, steps in (
        ("pretrain", "optimizer", PRETRAIN_STEPS),
        ("gan", "generator_optimizer", gan_steps),
    ):
        if getattr(recipe, stage):
            overrides += [f"{stage}.steps={steps}", f"{stage}.schedule={{kind: constant}}"]
            overrides += [f"{stage}.{optimizer}.lr=1e-3"]
    networks = {getattr(loss, "network", "random") for stage in stages(recipe) for loss in stage.losses}
    overrides += [f"features.weights={vgg_files[network]}" for network in networks - {"random"}]
    return load_recipe(name, overrides)


def batch(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A crop of each photo."""
    lr, hr = crops(recipe)
    return CPU.to_input(lr), CPU.to_input(hr)


def content_losses(recipe: Recipe, stage: PretrainSpec | GanSpec) -> list[ContentLoss]:
    return build_content_losses(stage.losses, recipe.features, CPU.device, CPU.memory_format)


def run_step(state: TrainState, step: PretrainStep | GanStep, lr: Tensor, hr: Tensor) -> Losses:
    seed = step_seed(state.recipe.seed, 0, state.step)
    return step.run([MicroBatch(lr, hr, seed)], state.step_of_stage)


@dataclass
class Finished:
    """A run of all stages on the same four crops: its state and the losses of every step."""

    state: TrainState
    seen: list[Losses]


@pytest.fixture(scope="module", params=recipe_names())
def finished(request: pytest.FixtureRequest, vgg_files: dict[str, Path]) -> Finished:
    recipe = small(request.param, vgg_files)
    lr, hr = batch(recipe)
    run = Finished(TrainState(recipe, CPU), [])
    for stage in stages(recipe):
        step = build_step(run.state)
        for _ in range(stage.steps):
            run.seen.append(run_step(run.state, step, lr, hr))
            run.state.advance()
    return run


def content(losses: Losses, terms: Sequence[ContentLoss]) -> float:
    return sum(term.weight * float(losses[f"g_{term.name}"]) for term in terms)


def test_the_first_stage_lowers_its_content_loss(finished: Finished) -> None:
    recipe = finished.state.recipe
    if recipe.init and recipe.pretrain is None:
        pytest.skip(
            "goes on from a trained generator by an adversarial loss: from random weights it proves nothing"
        )
    terms = content_losses(recipe, stages(recipe)[0])
    first, last = finished.seen[0], finished.seen[stages(recipe)[0].steps - 1]
    before, after = content(first, terms), content(last, terms)
    assert after < 0.95 * before


def test_all_stages_run_to_their_end_with_the_losses_of_the_recipe(finished: Finished) -> None:
    recipe = finished.state.recipe
    assert finished.state.done
    for stage, losses in zip(stages(recipe), (finished.seen[0], finished.seen[-1]), strict=False):
        named = {f"g_{term.name}" for term in content_losses(recipe, stage)}
        named |= {"g_adversarial"} if isinstance(stage, GanSpec) else set()
        assert {name for name in losses if name.startswith("g_")} == named | {"g_total"}
    assert all(math.isfinite(float(value)) for losses in finished.seen for value in losses.values())


def test_the_total_is_the_weighted_sum_of_the_terms(finished: Finished) -> None:
    recipe, losses = finished.state.recipe, finished.seen[-1]
    expected = content(losses, content_losses(recipe, stages(recipe)[-1]))
    if recipe.gan:
        expected += recipe.gan.adversarial.weight * float(losses["g_adversarial"])
    assert float(losses["g_total"]) == pytest.approx(expected, rel=1e-4)


def test_the_checkpoint_upscales_and_is_evaluated(finished: Finished, tmp_path: Path) -> None:
    state = finished.state
    state.snapshot().write(tmp_path)
    assert (tmp_path / PRETRAINED_FILE).exists() == (len(stages(state.recipe)) == 2)
    model = load_model(tmp_path / GENERATOR_FILE)
    assert model.network == state.recipe.network
    hr = np.ascontiguousarray(real_photos()["chelsea"][100:164, 120:180])
    lr = degrade(hr[None], state.recipe.degradation, state.recipe.scale, [np.random.default_rng(0)])[0]
    engine = Engine(model.module, model.capability, device="cpu", precision="float32")
    output = upscale_photo(Photo(lr), engine).pixels
    expected = state.ema(CPU.to_input(lr[None]))[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
    assert output.shape == hr.shape
    assert np.abs(output - expected).max() <= 1
    for name, pixels in (("hr", hr), ("lr", lr)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "chelsea.png")
    found = evaluate(model, tmp_path / "hr", tmp_path / "lr", device="cpu")
    assert found.mean["psnr_y"] == pytest.approx(psnr_of_luma(output, hr, border=border_of(state.recipe)), abs=0.05)


def border_of(recipe: Recipe) -> int:
    return recipe.scale if recipe.scale > 1 else 0


def psnr_of_luma(output: np.ndarray, hr: np.ndarray, border: int) -> float:
    """PSNR-Y of two uint8 H×W×3 photos, from its definition."""
    inside = slice(border, -border or None)
    difference = (output.astype(float) - hr)[inside, inside] @ np.array([65.481, 128.553, 24.966]) / 255
    return 20 * math.log10(255 / math.sqrt((difference**2).mean()))


# ------------------------------------------------------------------------------------------ gradients


def gradients(module: nn.Module | None) -> list[Tensor]:
    parameters = module.parameters() if module else []
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


def norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


@every_recipe
def test_every_content_loss_alone_reaches_the_generator_and_no_discriminator(
    name: str, vgg_files: dict[str, Path]
) -> None:
    recipe = small(name, vgg_files)
    state = TrainState(recipe, CPU)
    lr, hr = batch(recipe)
    for stage in stages(recipe):
        for loss in content_losses(recipe, stage):
            state.generator.zero_grad(set_to_none=True)
            loss(state.generator(lr), hr).backward()
            assert 1e-6 < norm(gradients(state.generator)) < math.inf, loss.name
            assert not gradients(state.discriminator)


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).gan])
def test_the_adversarial_loss_alone_reaches_each_network_in_its_own_step(
    name: str, vgg_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(name, vgg_files).model_copy(update={"pretrain": None})
    state = TrainState(recipe, CPU)
    moments: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {"generator": [], "discriminator": []}

    def watch(network: str, optimizer: GuardedOptimizer) -> None:
        plain = optimizer.step

        def step(number: int, skip: torch.Tensor | None = None) -> None:
            moments[network].append((gradients(state.generator), gradients(state.discriminator)))
            plain(number)

        monkeypatch.setattr(optimizer, "step", step)

    assert recipe.gan
    assert state.generator_optimizer
    assert state.discriminator_optimizer
    watch("generator", state.generator_optimizer)
    watch("discriminator", state.discriminator_optimizer)
    step = build_step(state)
    step.losses = []
    run_step(state, step, *batch(recipe))
    ((own, foreign),) = moments["generator"]
    assert 0 < norm(own) < math.inf
    assert not foreign
    assert len(moments["discriminator"]) == recipe.gan.adversarial.critic_updates
    for generators, discriminators in moments["discriminator"]:
        assert all(torch.equal(now, then) for now, then in zip(generators, own, strict=True))
        assert 0 < norm(discriminators) < math.inf


# ----------------------------------------------------------------------------------- what cannot be joined


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("msrgan-x4", ["discriminator.input_size=96"], "vgg is made for 96 px, data.crop is 128: make them equal"),
        ("msrgan-x4", ["data.crop=96"], "vgg is made for 128 px, data.crop is 96: make them equal"),
        (
            "keras-gan-x2",
            ["degradation=[{kind: downscale}, {kind: downscale}]"],  # x4 data for a x2 generator
            "x2 needs one downscale or second_order step in degradation, not 2",
        ),
        ("realesrgan-x4", ["degradation.2={kind: downscale}"], "x4 needs one downscale or second_order step"),
        ("srgan-paper-x4", ["degradation=[{kind: motion_blur}]"], "x4 needs one downscale or second_order step"),
        ("deblurgan", ["scale=4"], "generator deblurgan has no x4: it offers x1"),
        ("deblurgan", ["degradation=[{kind: downscale}]"], "scale 1 has nothing to downscale"),
        ("deblurgan", ["gan.losses.0.normalise=true"], "normalise and signed are two ranges of the input"),
        ("deblurgan-wgan", ["gan.adversarial={kind: bce}"], "bce takes logits: set discriminator.sigmoid to false"),
        ("esrgan-x4", ["scale=3", "data.crop=96"], "generator rrdbnet has no x3"),
        ("srresnet-x4", ["gan={}"], "the gan stage needs a discriminator"),
    ],
)
def test_what_does_not_fit_together_is_refused_when_it_is_read(
    name: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    assert expected in str(caught.value)
