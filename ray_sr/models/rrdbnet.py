"""RRDBNet, the generator of ESRGAN (arXiv 1809.00219) and Real-ESRGAN (arXiv 2107.10833)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import conv3, pad_to_multiple, scale_kaiming
from ray_sr.recipes.networks import RRDBNetSpec

_RESIDUAL_SCALE = 0.2
_ENLARGED = 4


class RRDBNet(Generator):
    """Residual-in-residual dense blocks, then twice nearest x2 and a convolution: always x4 within.

    x2 and x1 unshuffle the input's pixels by 2 and 4 first, as Real-ESRGAN does, so that the blocks work at
    half and quarter size; sizes that do not divide are padded and the result is cropped. Parameters carry
    BasicSR's names. The dense convolutions start from Kaiming-normal weights times 0.1.
    """

    def __init__(self, spec: RRDBNetSpec, scale: int) -> None:
        super().__init__()
        channels, unshuffle = spec.channels, _ENLARGED // scale
        self.conv_first = conv3(3 * unshuffle**2, channels)
        self.body = nn.Sequential(*(_ResidualInResidual(channels, spec.growth) for _ in range(spec.blocks)))
        self.conv_body = conv3(channels, channels)
        self.conv_up1 = conv3(channels, channels)
        self.conv_up2 = conv3(channels, channels)
        self.conv_hr = conv3(channels, channels)
        self.conv_last = conv3(channels, 3)
        scale_kaiming(self.body, 0.1)
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=unshuffle,
            receptive_field=rf.radius(_layers(spec.blocks, unshuffle), scale, unshuffle),
            bf16=True,
            whole_image_norm=False,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        scale, (height, width) = self.capability.scale, batch.shape[-2:]
        batch = pad_to_multiple(batch, self.capability.multiple)
        features = self.conv_first(F.pixel_unshuffle(batch, self.capability.multiple))
        features = features + self.conv_body(self.body(features))
        features = _activate(self.conv_up1(F.interpolate(features, scale_factor=2, mode="nearest")))
        features = _activate(self.conv_up2(F.interpolate(features, scale_factor=2, mode="nearest")))
        result = self.conv_last(_activate(self.conv_hr(features)))
        return result[..., : height * scale, : width * scale]


class _ResidualInResidual(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(channels, growth)
        self.rdb2 = _DenseBlock(channels, growth)
        self.rdb3 = _DenseBlock(channels, growth)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + _RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(features)))


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and all that the ones before it made."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = conv3(channels, growth)
        self.conv2 = conv3(channels + growth, growth)
        self.conv3 = conv3(channels + 2 * growth, growth)
        self.conv4 = conv3(channels + 3 * growth, growth)
        self.conv5 = conv3(channels + 4 * growth, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = [features]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(_activate(conv(torch.cat(seen, 1))))
        return features + _RESIDUAL_SCALE * self.conv5(torch.cat(seen, 1))


def _activate(features: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(features, 0.2, inplace=True)


def _layers(blocks: int, unshuffle: int) -> list[rf.Layer]:
    dense = 3 * 5 * blocks
    upsampling = [rf.enlarge(2), rf.conv(3)] * 2
    return [rf.shrink(unshuffle), *[rf.conv(3)] * (dense + 2), *upsampling, rf.conv(3), rf.conv(3)]
