"""Bicubic enlargement behind a generator's interface: the baseline that every network is compared with."""

from __future__ import annotations

import torch

from ray_sr.images.resample import upscale
from ray_sr.models import receptive_field as rf
from ray_sr.models.generator import Capability, Generator


class Bicubic(Generator):
    """Enlarges N×3×h×w by a whole `scale` as MATLAB's `imresize` does; nothing to train, not clamped."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.capability = Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=rf.radius([rf.interpolate(scale, taps=4)], scale),
            bf16=False,
            whole_image_norm=False,
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return upscale(batch, self.capability.scale)
