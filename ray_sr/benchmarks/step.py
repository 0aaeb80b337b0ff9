"""`ray-sr bench step`: one training step of each stage, this project's beside a plain loop of the same networks.

MSRResNet x4, VGG-style discriminator, VGG19 conv5_4, with made-up weights and photos: the time of a step does not
depend on their values. Both sides start from the same weights and see the same photos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_sr.benchmarks.machine import Times, medians, speedups, take_turns
from ray_sr.benchmarks.plain import PlainGanLoop, PlainPretrainLoop, PlainVGG
from ray_sr.features import layer_positions
from ray_sr.losses import build_content_losses
from ray_sr.models import Generator, build_discriminator, build_generator
from ray_sr.progress import Progress
from ray_sr.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState, step_seed
from ray_sr.training.steps import GanStep, PretrainStep

BATCH = 4
CROP = 128
STAGES = ("pretrain", "gan")

_VGG19_WIDTHS = (64, 128, 256, 512, 512)
_PERCEPTUAL = {"kind": "perceptual", "layers": {"conv5_4": 1.0}, "activation": "before", "distance": "l1"}
_STAGES: dict[str, Any] = {
    "pretrain": {"losses": [{"kind": "l1"}], "optimizer": {"lr": 2e-4, "betas": (0.9, 0.99)}},
    "gan": {
        "losses": [{"kind": "l1", "weight": 1e-2}, _PERCEPTUAL],
        "adversarial": {"kind": "bce", "weight": 5e-3},
        "generator_optimizer": {"lr": 1e-4, "betas": (0.9, 0.99)},
        "discriminator_optimizer": {"lr": 1e-4, "betas": (0.9, 0.99)},
    },
}


def bench_recipe(stage: str, vgg: Path, batch: int = BATCH, crop: int = CROP, **training: Any) -> Recipe:
    """BasicSR's MSRResNet (`pretrain`) or MSRGAN (`gan`) stage; `vgg` is a weights file of VGG19."""
    return Recipe.model_validate(
        {
            "name": "bench",
            "data": {"crop": crop, "batch": batch},
            "generator": {"kind": "msrresnet"},
            "discriminator": {"kind": "vgg"},
            stage: _STAGES[stage],
            "features": {"weights": str(vgg)},
            "training": training,
        }
    )


class OurLoop:
    """The library's own step of one stage, with everything that a training worker does for it."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.compute = Compute.of(recipe.training, device)
        self.state = TrainState(recipe, self.compute)
        self.noise = torch.Generator()
        if recipe.training.compile:
            for module in (self.state.generator, self.state.discriminator):
                if module is not None:
                    module.compile(dynamic=False)
        self.step = _step_of(self.state)

    def run(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """One step; LR and HR float32 N×3×h×w in [0, 1]."""
        self.noise.manual_seed(step_seed(self.state.recipe.seed, 0, self.state.step))
        losses = self.step.run(lr, hr, self.state.step_of_stage, self.noise)
        self.state.advance()
        return losses


def _step_of(state: TrainState) -> PretrainStep | GanStep:
    recipe, compute = state.recipe, state.compute
    stage = recipe.pretrain or recipe.gan
    assert stage
    assert state.generator_optimizer
    losses = build_content_losses(
        stage.losses, recipe.features, compute.device, compute.memory_format, compute.autocast_dtype
    )
    if recipe.gan is None:
        return PretrainStep(state.generator, state.generator_optimizer, losses, compute)
    assert state.discriminator
    assert state.discriminator_optimizer
    return GanStep(
        state.generator,
        state.discriminator,
        state.generator_optimizer,
        state.discriminator_optimizer,
        losses,
        recipe.gan.adversarial,
        compute,
    )


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
