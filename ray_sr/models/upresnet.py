"""UpResNet: a small residual network with one BatchNorm in each block and parameter-free upsampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import conv3
from ray_sr.recipes.networks import UpResNetSpec


class UpResNet(Generator):
    """3x3 convolution, residual blocks at the input's size, bilinear upsampling, 3x3 convolution.

    Bilinear rather than nearest: behind nearest x4 a 3x3 convolution could not tell the inner pixels of each
    4x4 square apart. All convolutions have a bias. With 8 blocks of 64 channels: 595,395 trainable parameters
    and 1,024 running statistics.
    """

    def __init__(self, spec: UpResNetSpec, scale: int) -> None:
        super().__init__()
        self.first = conv3(3, spec.channels)
        self.blocks = nn.Sequential(*(_ResidualBlock(spec.channels) for _ in range(spec.blocks)))
        self.last = conv3(spec.channels, 3)
        layers = [*[rf.conv(3)] * (2 * spec.blocks + 1), rf.interpolate(scale, taps=2), rf.conv(3)]
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius(layers, scale),
            bf16=True,
            whole_image_norm=False,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.first(batch))
        return self.last(F.interpolate(features, scale_factor=self.capability.scale, mode="bilinear"))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            conv3(channels, channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features)
