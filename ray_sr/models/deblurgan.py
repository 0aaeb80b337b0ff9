"""The generator of DeblurGAN (arXiv 1711.07064): the same size in and out."""

from __future__ import annotations

import torch
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import conv3, norm_layer, normal_init, pad_to_multiple, scale_kaiming
from ray_sr.recipes.networks import DeblurGANSpec

_MULTIPLE = 4
_MINIMUM = 8  # two positions a side at a quarter of the size: the least that reflects by one


class DeblurGAN(Generator):
    """Two strided convolutions, residual blocks at a quarter of the size, two upsamplings; adds to the input.

    The residual ends in tanh. Sizes that do not divide by 4 are padded, and the result is cropped. Weights
    start from N(0, 0.02), which normalisation makes up for; without it they start Kaiming-normal, a tenth of that
    in residual branches and in the last convolution. Parameters carry the names of the authors' release.
    `instance` normalises by the statistics of each whole image, in training and afterwards.
    """

    def __init__(self, spec: DeblurGANSpec, scale: int) -> None:
        super().__init__()
        narrow, middle, wide = (spec.channels * factor for factor in (1, 2, 4))
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normalised(nn.Conv2d(3, narrow, 7), narrow, spec.norm),
            *_normalised(conv3(narrow, middle, stride=2), middle, spec.norm),
            *_normalised(conv3(middle, wide, stride=2), wide, spec.norm),
            *(_ResidualBlock(spec, wide) for _ in range(spec.blocks)),
            *_doubled(spec, wide, middle),
            *_doubled(spec, middle, narrow),
            nn.ReflectionPad2d(3),
            nn.Conv2d(narrow, 3, 7),
            nn.Tanh(),
        )
        _start(self.model, spec.norm)
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=_MULTIPLE,
            receptive_field=rf.radius(_layers(spec), scale, _MULTIPLE),
            bf16=True,
            whole_image_norm=spec.norm == "instance",
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        height, width = batch.shape[-2:]
        padded = pad_to_multiple(batch, _MULTIPLE, _MINIMUM)
        return batch + self.model(padded)[..., :height, :width]


class _ResidualBlock(nn.Module):
    def __init__(self, spec: DeblurGANSpec, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normalised(nn.Conv2d(channels, channels, 3), channels, spec.norm),
            nn.Dropout(spec.dropout),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm_layer(spec.norm, channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.conv_block(features)


def _start(model: nn.Sequential, norm: str) -> None:
    if norm == "none":
        scale_kaiming(model, 1.0)
        for part in (*(part for part in model if isinstance(part, _ResidualBlock)), model[-2]):
            scale_kaiming(part, 0.1)
    else:
        normal_init(model)


def _normalised(conv: nn.Module, channels: int, norm: str) -> list[nn.Module]:
    return [conv, norm_layer(norm, channels), nn.ReLU(inplace=True)]


def _doubled(spec: DeblurGANSpec, inputs: int, outputs: int) -> list[nn.Module]:
    if spec.upsampling == "transposed":
        conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
        return _normalised(conv, outputs, spec.norm)
    return [nn.Upsample(scale_factor=2), *_normalised(conv3(inputs, outputs), outputs, spec.norm)]


def _layers(spec: DeblurGANSpec) -> list[rf.Layer]:
    doubled = [rf.transposed_conv()] if spec.upsampling == "transposed" else [rf.enlarge(2), rf.conv(3)]
    down = [rf.conv(7), rf.conv(3, stride=2), rf.conv(3, stride=2)]
    return [*down, *[rf.conv(3)] * (2 * spec.blocks), *doubled, *doubled, rf.conv(7)]
