"""SRVGGNetCompact, the small and fast generator of Real-ESRGAN (arXiv 2107.10833 and its repository)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import ShuffledConv, conv3
from ray_sr.recipes.networks import CompactSpec


class Compact(Generator):
    """Convolutions at the input's size, one pixel shuffle, plus the nearest-enlarged input.

    `convs` counts the convolutions between the first and the last. Parameters carry Real-ESRGAN's names.
    """

    def __init__(self, spec: CompactSpec, scale: int) -> None:
        super().__init__()
        widths = [3] + [spec.channels] * (spec.convs + 1)
        body: list[nn.Module] = []
        for inputs in widths[:-1]:
            body += [conv3(inputs, spec.channels), _activation(spec)]
        body.append(ShuffledConv(spec.channels, 3, scale))
        self.body = nn.Sequential(*body)
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius([*[rf.conv(3)] * (spec.convs + 2), rf.enlarge(scale)], scale),
            bf16=True,
            whole_image_norm=False,
            residual=True,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.body(batch) + F.interpolate(batch, scale_factor=self.capability.scale, mode="nearest")


def _activation(spec: CompactSpec) -> nn.Module:
    if spec.activation == "prelu":
        return nn.PReLU(spec.channels)
    return nn.ReLU(inplace=True) if spec.activation == "relu" else nn.LeakyReLU(0.1, inplace=True)
