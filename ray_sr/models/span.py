"""SPAN, the Swift Parameter-free Attention Network (arXiv 2311.12770; NTIRE 2024's fastest network)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator
from ray_sr.models.layers import ShuffledConv, conv3, scale_kaiming
from ray_sr.recipes.networks import SPANSpec

_MEAN_COLOUR = (0.4488, 0.4371, 0.4040)  # of DIV2K's photographs
_GAIN = 2  # how many times as wide the branches are as the layer


class SPAN(Generator):
    """Blocks of three convolutions whose output weighs itself: attention without weights of its own.

    Parameters carry the published names. `branches` trains each 3x3 convolution as four (`BranchedConv`);
    without it a layer is one convolution, as all are after folding. `published_input` feeds the layers
    (colour - mean) · 255, as the published weights want it. `skip` adds the bilinearly enlarged input.
    """

    def __init__(self, spec: SPANSpec, scale: int) -> None:
        super().__init__()
        channels = spec.channels
        layer: Callable[..., nn.Module] = BranchedConv if spec.branches else conv3
        self.conv_1 = layer(3, channels)
        self.blocks = [f"block_{number}" for number in range(1, spec.blocks + 1)]
        for name in self.blocks:
            self.add_module(name, _Block(channels, layer))
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.conv_2 = layer(channels, channels)
        self.upsampler = nn.Sequential(ShuffledConv(channels, 3, scale))
        if spec.skip:
            scale_kaiming(self.upsampler, 0.1)  # starts near the enlarged input
        self.published_input, self.skip = spec.published_input, spec.skip
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius([*[rf.conv(3)] * (3 * spec.blocks + 3), rf.enlarge(scale)], scale),
            bf16=True,
            whole_image_norm=False,
            residual=spec.skip,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        inputs = batch
        if self.published_input:
            inputs = (batch - batch.new_tensor(_MEAN_COLOUR).view(1, 3, 1, 1)) * 255
        first = features = self.conv_1(inputs)
        outputs, inner = [], first
        for name in self.blocks:
            features, inner = getattr(self, name)(features)
            outputs.append(features)
        gathered = torch.cat([first, self.conv_2(features), outputs[0], inner], 1)
        enlarged: torch.Tensor = self.upsampler(self.conv_cat(gathered))
        if not self.skip:
            return enlarged
        return enlarged + F.interpolate(batch, scale_factor=self.capability.scale, mode="bilinear")


class BranchedConv(nn.Module):
    """A 3x3 convolution trained as 1x1, 3x3 and 1x1 of twice the width in a row, plus a 1x1 beside them.

    All of them are linear, so their product is made first, one 3x3 kernel of this layer's own size, and the
    picture goes through that alone: a step costs what a plain convolution costs. The published network pads
    before the first 1x1, so its bias is there beyond the border as well: the product is exact everywhere.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, _GAIN * inputs, 1),
            nn.Conv2d(_GAIN * inputs, _GAIN * outputs, 3),
            nn.Conv2d(_GAIN * outputs, outputs, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weight, bias = self.kernel()
        return F.conv2d(features, weight, bias, padding=1)

    def kernel(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The one kernel outputs×inputs×3×3 and the bias that stand for all branches; differentiable."""
        parts = [cast(tuple[torch.Tensor, torch.Tensor], (part.weight, part.bias)) for part in self.conv]
        (widen, wide_bias), (inner, inner_bias), (narrow, narrow_bias) = parts
        narrow = narrow.flatten(1)
        weight = torch.einsum("om,mkyx,ki->oiyx", narrow, inner, widen.flatten(1))
        bias = narrow @ (inner.sum((2, 3)) @ wide_bias + inner_bias) + narrow_bias
        assert self.sk.bias is not None
        return weight + F.pad(self.sk.weight, (1, 1, 1, 1)), bias + self.sk.bias

    def folded(self) -> nn.Conv2d:
        """A plain convolution with the same result, in the dtype and on the device of this one."""
        with torch.no_grad():
            weight, bias = self.kernel()
        outputs, inputs = weight.shape[:2]
        like = {"device": weight.device, "dtype": weight.dtype}
        plain: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1, **like)
        plain.load_state_dict({"weight": weight, "bias": bias})
        return plain


class _Block(nn.Module):
    def __init__(self, channels: int, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.c1_r = layer(channels, channels)
        self.c2_r = layer(channels, channels)
        self.c3_r = layer(channels, channels)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = F.silu(self.c1_r(features))
        last = self.c3_r(F.silu(self.c2_r(inner)))
        return (last + features) * (torch.sigmoid(last) - 0.5), inner
