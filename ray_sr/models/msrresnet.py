"""MSRResNet: SRResNet without BatchNorm and with a bilinear skip, as BasicSR and MMagic define it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import ShuffledConv, conv3, scale_kaiming, upsampling_factors
from ray_sr.recipes.networks import MSRResNetSpec


class MSRResNet(Generator):
    """Predicts the difference to the bilinearly enlarged input. Parameters carry BasicSR's names.

    x3 is one pixel shuffle by 3, x2, x4 and x8 are one, two and three by 2. With `upsampling: direct` the last
    convolution makes all output pixels at low resolution and one pixel shuffle places them, as IMDN ends
    (arXiv 1909.11856, section 3).

    The residual branches and the last convolution start from Kaiming-normal weights times 0.1, so that the
    network starts near the enlarged input. The others do not, as they do in BasicSR: where four in a row start
    small, first gradients are below the epsilon of Adam and nothing is learned for hundreds of steps.
    """

    def __init__(self, spec: MSRResNetSpec, scale: int) -> None:
        super().__init__()
        channels = spec.channels
        factors = upsampling_factors(scale) if spec.upsampling == "progressive" else []
        self.conv_first = conv3(3, channels)
        self.body = nn.Sequential(*(_ResidualBlock(channels) for _ in range(spec.blocks)))
        self.upconvs = [f"upconv{step}" for step, _ in enumerate(factors, start=1)]
        for name, factor in zip(self.upconvs, factors, strict=True):
            self.add_module(name, ShuffledConv(channels, channels, factor, _activate))
        if factors:
            self.conv_hr = conv3(channels, channels)
            self.conv_last: nn.Module = conv3(channels, 3)
        else:
            self.conv_last = ShuffledConv(channels, 3, scale)
        for start_small in (self.body, self.conv_last):
            scale_kaiming(start_small, 0.1)
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius(_layers(spec.blocks, factors, scale), scale),
            bf16=True,
            whole_image_norm=False,
            residual=True,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.body(_activate(self.conv_first(batch)))
        for name in self.upconvs:
            features = getattr(self, name)(features)
        if self.upconvs:
            features = _activate(self.conv_hr(features))
        return self.conv_last(features) + F.interpolate(batch, scale_factor=self.capability.scale, mode="bilinear")


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3(channels, channels)
        self.conv2 = conv3(channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.conv2(F.relu(self.conv1(features), inplace=True))


def _activate(features: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(features, 0.1, inplace=True)


def _layers(blocks: int, factors: list[int], scale: int) -> list[rf.Layer]:
    body = [rf.conv(3)] * (2 * blocks + 1)
    if not factors:
        return [*body, rf.conv(3), rf.enlarge(scale)]
    upsampling = [layer for factor in factors for layer in (rf.conv(3), rf.enlarge(factor))]
    return [*body, *upsampling, rf.conv(3), rf.conv(3)]
