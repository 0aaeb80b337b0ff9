"""Generators and discriminators as plain PyTorch modules, built from their parts of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ray_sr.errors import ModelError
from ray_sr.models.bicubic import Bicubic
from ray_sr.models.compact import Compact
from ray_sr.models.deblurgan import DeblurGAN
from ray_sr.models.discriminators import (
    DenseCritic,
    MultiScale,
    PatchGAN,
    SRGANDiscriminator,
    TinyDiscriminator,
    UNetDiscriminator,
    VGGDiscriminator,
)
from ray_sr.models.folding import folded
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.msrresnet import MSRResNet
from ray_sr.models.rlfn import RLFN
from ray_sr.models.rrdbnet import RRDBNet
from ray_sr.models.span import SPAN
from ray_sr.models.spandrel_network import SpandrelGenerator
from ray_sr.models.srresnet import SRResNet
from ray_sr.models.upresnet import UpResNet
from ray_sr.recipes.networks import DiscriminatorSpec, NetworkSpec
from ray_sr.recipes.section import ValueRange

__all__ = [
    "Bicubic",
    "Capability",
    "Generator",
    "build_discriminator",
    "build_generator",
    "count_parameters",
    "folded",
]

_GENERATORS: dict[str, Callable[[Any, int], Generator]] = {
    "srresnet": SRResNet,
    "msrresnet": MSRResNet,
    "rrdbnet": RRDBNet,
    "compact": Compact,
    "upresnet": UpResNet,
    "deblurgan": DeblurGAN,
    "span": SPAN,
    "rlfn": RLFN,
    "spandrel": SpandrelGenerator,
}
_DISCRIMINATORS: dict[str, Callable[[Any, int], nn.Module]] = {
    "srgan": SRGANDiscriminator,
    "vgg": VGGDiscriminator,
    "tiny": TinyDiscriminator,
    "patchgan": PatchGAN,
    "unet": UNetDiscriminator,
    "multiscale": MultiScale,
    "dense_critic": DenseCritic,
}


def build_generator(network: NetworkSpec) -> Generator:
    """A generator with fresh weights: N×3×h×w -> N×3×(h·scale)×(w·scale), both in [0, 1], not clamped.

    With value_range `signed` the layers see and make values in [-1, 1]; the conversions are hooks of the
    module, so its state dict and its outer range are the same. The weights come from torch's global random
    state. Raises ModelError where the generator does not offer the scale.
    """
    spec = network.generator
    if network.scale not in spec.scales:
        offered = ", ".join(f"x{scale}" for scale in spec.scales)
        raise ModelError(f"generator {spec.kind} has no x{network.scale}: choose from {offered}")
    generator = _GENERATORS[spec.kind](spec, network.scale)
    generator.network = network
    if network.value_range == "signed":
        generator.register_forward_pre_hook(_to_signed)
        generator.register_forward_hook(_from_signed)
    return generator


def build_discriminator(spec: DiscriminatorSpec, crop: int, value_range: ValueRange) -> nn.Module:
    """A discriminator with fresh weights for images N×3×crop×crop in [0, 1].

    Gives logits, N×1 or a map N×1×h×w (dense_critic with `sigmoid` gives values in [0, 1] instead). Raises
    ModelError where the crop is too small for it or not the one it is made for.
    """
    if crop < spec.minimum_crop:
        raise ModelError(f"discriminator {spec.kind} needs crops from {spec.minimum_crop} px on, not {crop}")
    made_for = getattr(spec, "input_size", None) or crop
    if made_for != crop:
        raise ModelError(f"discriminator {spec.kind} is made for {made_for} px and cannot take {crop}")
    discriminator = _DISCRIMINATORS[spec.kind](spec, crop)
    if value_range == "signed":
        discriminator.register_forward_pre_hook(_to_signed)
    return discriminator


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Sizes of `module`: {"parameters": trainable + buffers, "trainable", "buffers"}.

    Buffers are what a network stores besides its weights, such as BatchNorm's running statistics; step
    counters (whole numbers) are left out. Weights that are frozen count as buffers.
    """
    trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    frozen = [weight for weight in module.parameters() if not weight.requires_grad]
    stored = [*frozen, *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    buffers = sum(tensor.numel() for tensor in stored)
    return {"parameters": trainable + buffers, "trainable": trainable, "buffers": buffers}


def _to_signed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return inputs[0] * 2 - 1


def _from_signed(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return (output + 1) / 2
