"""SRResNet, the generator of the SRGAN paper (arXiv 1609.04802, figure 4)."""

from __future__ import annotations

import torch
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import ShuffledConv, conv3, upsampling_factors
from ray_sr.recipes.networks import SRResNetSpec


class SRResNet(Generator):
    """9x9 convolution, residual blocks with BatchNorm and PReLU, pixel shuffles, 9x9 convolution.

    Convolutions before a BatchNorm have no bias; each PReLU has one slope for all its channels. x3 is one
    shuffle by 3, x2, x4 and x8 are one, two and three by 2.
    """

    def __init__(self, spec: SRResNetSpec, scale: int) -> None:
        super().__init__()
        channels, factors = spec.channels, upsampling_factors(scale)
        self.head = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(_ResidualBlock(channels) for _ in range(spec.blocks)))
        self.tail = nn.Sequential(conv3(channels, channels, bias=False), nn.BatchNorm2d(channels))
        self.upsampling = nn.Sequential(*(_enlarge(channels, factor) for factor in factors))
        self.last = nn.Conv2d(channels, 3, 9, padding=4)
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius(_layers(spec.blocks, factors), scale),
            bf16=True,
            whole_image_norm=False,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.head(batch)
        features = features + self.tail(self.blocks(features))
        return self.last(self.upsampling(features))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv3(channels, channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            conv3(channels, channels, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features)


def _enlarge(channels: int, factor: int) -> nn.Sequential:
    return nn.Sequential(ShuffledConv(channels, channels, factor), nn.PReLU())


def _layers(blocks: int, factors: list[int]) -> list[rf.Layer]:
    upsampling = [layer for factor in factors for layer in (rf.conv(3), rf.enlarge(factor))]
    return [rf.conv(9), *[rf.conv(3)] * (2 * blocks + 1), *upsampling, rf.conv(9)]
