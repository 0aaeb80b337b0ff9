"""`ray-sr bench step`: one training step of each stage, this project's beside a plain loop of the same networks.

Both stages of the recipe msrgan-x4 (MSRResNet, VGG-style discriminator, VGG19 conv5_4), with made-up weights and
photos: the time of a step does not depend on their values. Both sides start from the same weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.bench.machine import Bench, Times
from ray_sr.bench.plain import PlainGanLoop, PlainPretrainLoop, PlainVGG
from ray_sr.models import build_discriminator, build_generator
from ray_sr.perceptual.vgg import layer_positions
from ray_sr.progress import Progress
from ray_sr.recipes.reader import load_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState, step_seed
from ray_sr.training.steps import MicroBatch, build_step

RECIPE = "msrgan-x4"
BATCH = 4
CROP = 128
STAGES = ("pretrain", "gan")

_VGG19_WIDTHS = (64, 128, 256, 512, 512)


def bench_steps(bench: Bench, batch: int = BATCH, crop: int = CROP, **training: Any) -> dict[str, Any]:
    """Median seconds of a step of each stage, ours and plain, and how many times faster ours is.

    {"batch", "crop", "pretrain_step_s", "gan_step_s", "plain": {both}, "speedup": {stage: {"median", "lower"
    and "upper" quartile}}}. `training` are fields of the recipe's section of that name.
    """
    result: dict[str, Any] = {"batch": batch, "crop": crop, "plain": {}, "speedup": {}}
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as folder:
        vgg = Path(folder) / "vgg19.pth"
        torch.save(synthetic_vgg19(), vgg)
        with Progress("training steps", len(STAGES) * (1 + bench.rounds), "rounds") as progress:
            for stage in STAGES:
                times = _times(bench_recipe(stage, vgg, batch, crop, **training), bench, progress)
                result[f"{stage}_step_s"] = times.median("ours")
                result["plain"][f"{stage}_step_s"] = times.median("plain")
                result["speedup"][stage] = times.speedup("ours", "plain")
    return result


def _times(recipe: Recipe, bench: Bench, progress: Progress) -> Times:
    ours = OurLoop(recipe, bench.device)
    plain = plain_loop(recipe, ours)
    lr, hr = (photos.to(bench.device) for photos in synthetic_photos(recipe))
    placed = [photos.to(memory_format=ours.compute.memory_format) for photos in (lr, hr)]
    turns = {"ours": lambda: ours.run(*placed), "plain": lambda: plain.run(lr, hr)}
    return bench.take_turns(turns, progress.advance)


def synthetic_photos(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """LR and HR of smooth noise: a batch of the recipe, float32 N×3×h×w in [0, 1]."""
    rng, crop = torch.Generator().manual_seed(0), recipe.data.crop
    hr = F.interpolate(torch.rand(recipe.data.batch, 3, 16, 16, generator=rng), size=crop, mode="bilinear")
    return F.avg_pool2d(hr, recipe.scale), hr


def synthetic_vgg19() -> dict[str, Tensor]:
    """He-normal weights of VGG19's convolutions by torchvision's names: activations neither grow nor fade."""
    rng = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    inputs = 3
    for name, position in layer_positions("vgg19").items():
        outputs = _VGG19_WIDTHS[int(name[4]) - 1]
        deviation = (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{position}.weight"] = deviation * torch.randn(outputs, inputs, 3, 3, generator=rng)
        tensors[f"features.{position}.bias"] = torch.zeros(outputs)
        inputs = outputs
    return tensors


def bench_recipe(stage: str, vgg: Path, batch: int = BATCH, crop: int = CROP, **training: Any) -> Recipe:
    """The stage `pretrain` or `gan` of the recipe, alone; `vgg` is a weights file of VGG19.

    Raises RecipeError where the recipe does not allow the batch or the crop.
    """
    other = STAGES[1 - STAGES.index(stage)]
    overrides = {
        other: "null",
        "data.batch": batch,
        "data.crop": crop,
        "data.crops_per_image": 1,
        "discriminator.input_size": crop,
        "features.weights": vgg,
        **{f"training.{name}": value for name, value in training.items()},
    }
    return load_recipe(RECIPE, [f"{key}={value}" for key, value in overrides.items()])


class OurLoop:
    """The library's own step of one stage, with everything that a training worker does for it."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.compute = Compute.of(recipe.training, device)
        self.state = TrainState(recipe, self.compute)
        self.step = build_step(self.state, wrap=self._compiled)

    def _compiled(self, network: nn.Module) -> nn.Module:
        if self.state.recipe.training.compile:
            network.compile(dynamic=False)
        return network

    def run(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """One step; LR and HR float32 N×3×h×w in [0, 1]."""
        seed = step_seed(self.state.recipe.seed, 0, self.state.step)
        losses = self.step.run([MicroBatch(lr, hr, seed)], self.state.step_of_stage)
        self.state.advance()
        return losses


def plain_loop(recipe: Recipe, ours: OurLoop) -> PlainPretrainLoop | PlainGanLoop:
    """The plain loop of the recipe's stage, from copies of the weights of `ours`."""
    device = ours.compute.device
    generator, average = (_copy(build_generator(recipe.network), ours.state.generator, device) for _ in range(2))
    if recipe.gan is None:
        return PlainPretrainLoop(generator, average)
    assert recipe.discriminator
    assert recipe.features.weights
    assert ours.state.discriminator
    critic = build_discriminator(recipe.discriminator, recipe.data.crop, recipe.value_range)
    weights = torch.load(recipe.features.weights, weights_only=True)
    vgg = PlainVGG(weights).to(device)
    return PlainGanLoop(generator, average, _copy(critic, ours.state.discriminator, device), vgg)


def _copy(module: nn.Module, source: nn.Module, device: torch.device) -> Any:
    module.load_state_dict(source.state_dict())
    return module.to(device)
