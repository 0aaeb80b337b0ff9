"""RLFN, the Residual Local Feature Network (arXiv 2205.07514; winner of NTIRE 2022's efficiency challenge)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import ShuffledConv, conv3, scale_kaiming
from ray_sr.recipes.networks import RLFNSpec

_LEAST = 15  # input pixels that one value of the pooled attention sees


class RLFN(Generator):
    """Blocks of three convolutions, each block weighed by spatial attention from afar. Published names.

    `published_input` feeds the layers values in [0, 255], as the published weights want it, and divides
    their output again. `skip` adds the bilinearly enlarged input. Pictures under 15 px are padded by repetition.
    """

    def __init__(self, spec: RLFNSpec, scale: int) -> None:
        super().__init__()
        channels = spec.channels
        self.conv_1 = conv3(3, channels)
        self.blocks = [f"block_{number}" for number in range(1, spec.blocks + 1)]
        for name in self.blocks:
            self.add_module(name, _Block(channels, spec.inner or channels, spec.attention))
        self.conv_2 = conv3(channels, channels)
        self.upsampler = nn.Sequential(ShuffledConv(channels, 3, scale))
        if spec.skip:
            scale_kaiming(self.upsampler, 0.1)  # starts near the enlarged input
        self.range, self.skip = 255 if spec.published_input else 1, spec.skip
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius(_layers(spec.blocks, scale), scale),
            bf16=True,
            # The pooled attention is stretched to the picture's size: where it lies depends on the whole.
            whole_image_norm=True,
            residual=spec.skip,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        height, width = batch.shape[-2:]
        scale = self.capability.scale
        # Python's own max() would fix the sizes in ONNX.
        right, bottom = (cast(int, torch.sym_max(_LEAST - side, 0)) for side in (width, height))
        padded = F.pad(batch, (0, right, 0, bottom), mode="replicate")
        first = features = self.conv_1(padded * self.range)
        for name in self.blocks:
            features = getattr(self, name)(features)
        enlarged: torch.Tensor = self.upsampler(self.conv_2(features) + first) / self.range
        if self.skip:
            enlarged = enlarged + F.interpolate(padded, scale_factor=scale, mode="bilinear")
        return enlarged[..., : height * scale, : width * scale]


class _Block(nn.Module):
    def __init__(self, channels: int, inner: int, attention: int) -> None:
        super().__init__()
        self.c1_r = conv3(channels, inner)
        self.c2_r = conv3(inner, inner)
        self.c3_r = conv3(inner, channels)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = SpatialAttention(channels, attention)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inside = features
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            inside = F.leaky_relu(layer(inside), 0.05, inplace=True)
        weighed: torch.Tensor = self.esa(self.c5(inside + features))
        return weighed


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (RFANet, CVPR 2020, section 3.3), with one convolution where RLFN has one.

    A narrow picture of the features, shrunk by 2 and pooled by 7 in steps of 3, is stretched back over the
    whole and says with the narrow features themselves how much of each value is let through.
    """

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, 2)
        self.conv3 = conv3(narrow, narrow)
        self.conv4 = nn.Conv2d(narrow, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        narrow = self.conv1(features)
        far = self.conv3(F.max_pool2d(self.conv2(narrow), 7, 3))
        far = F.interpolate(far, size=features.shape[2:], mode="bilinear")
        return features * torch.sigmoid(self.conv4(far + self.conv_f(narrow)))


def _layers(blocks: int, scale: int) -> list[rf.Layer]:
    """Along the widest path: each block's three convolutions and its attention."""
    attention = [rf.conv(3, 2), rf.pool(7, 3), rf.conv(3), rf.interpolate(6, taps=2)]
    return [rf.conv(3), *[*[rf.conv(3)] * 3, *attention] * blocks, rf.conv(3), rf.conv(3), rf.enlarge(scale)]
