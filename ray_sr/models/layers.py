"""What several networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def conv3(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (zero padding), or divides it by `stride`."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


def _unchanged(features: torch.Tensor) -> torch.Tensor:
    return features


class ShuffledConv(nn.Conv2d):
    """A 3x3 convolution and a pixel shuffle: N×inputs×h×w -> N×outputs×(h·factor)×(w·factor).

    Weights are those of a convolution to outputs·factor² channels before `nn.PixelShuffle` (arXiv 1609.05158).
    In channels_last memory the channels are made in the order in which the shuffle puts them, so that it moves
    whole blocks: its gradient is 9 times faster so. `activation` works value by value and may do so in place:
    it is applied before the shuffle, which gives a view.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        factor: int,
        activation: Callable[[torch.Tensor], torch.Tensor] = _unchanged,
    ) -> None:
        super().__init__(inputs, outputs * factor**2, 3, padding=1)
        self.factor, self.activation = factor, activation

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features.is_contiguous() or not features.is_contiguous(memory_format=torch.channels_last):
            return F.pixel_shuffle(self.activation(super().forward(features)), self.factor)
        places, outputs = self.factor**2, self.out_channels // self.factor**2
        weight = self.weight.unflatten(0, (outputs, places)).transpose(0, 1).flatten(0, 1)
        bias = None if self.bias is None else self.bias.unflatten(0, (outputs, places)).t().flatten()
        made = self.activation(self._conv_forward(features, weight, bias)).permute(0, 2, 3, 1)
        blocks = made.unflatten(3, (self.factor, self.factor, outputs)).transpose(2, 3)
        return blocks.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def upsampling_factors(scale: int) -> list[int]:
    """Steps that make up `scale`: one of 3, else as many of 2 as it takes; none for 1."""
    return [3] if scale == 3 else [2] * (scale.bit_length() - 1)


def pad_to_multiple(batch: torch.Tensor, multiple: int, minimum: int = 1) -> torch.Tensor:
    """Repeats the last row and column until both sides are multiples of `multiple`, at least `minimum`."""
    height, width = batch.shape[-2:]
    # Floor division and not the remainder: torch.compile (2.15) fails on remainders of dynamic sizes that an
    # interpolation follows.
    bottom, right = (-(-max(side, minimum) // multiple) * multiple - side for side in (height, width))
    if bottom == 0 and right == 0:
        return batch
    return F.pad(batch, (0, right, 0, bottom), mode="replicate")


def scale_kaiming(root: nn.Module, factor: float) -> None:
    """Kaiming-normal weights times `factor` and zero biases, in every convolution under `root`.

    Residual branches that start small leave deep stacks without BatchNorm trainable (arXiv 1809.00219,
    section 3.1).
    """
    for module in root.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(factor)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normal_init(root: nn.Module, deviation: float = 0.02) -> None:
    """Weights from N(0, deviation), BatchNorm's scales from N(1, deviation), biases 0 (arXiv 1611.07004)."""
    for module in root.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, deviation)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, deviation)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """`batch`: BatchNorm with scale and shift. `instance`: each image's own statistics, no parameters. `none`."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            return nn.InstanceNorm2d(channels)
        case _:
            return nn.Identity()
