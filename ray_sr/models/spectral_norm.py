"""A convolution whose weight is divided by its largest singular value (arXiv 1802.05957)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_FIRST_ITERATIONS = 15


class SpectralConv2d(nn.Module):
    """A convolution without bias of spectral norm 1 (the weight seen as outputs×rest matrix).

    Each forward pass in training improves the two singular vectors by one power iteration; in eval they stay.
    Parameter and buffers are named as `torch.nn.utils.spectral_norm` names them, which published
    discriminators were stored with. Unlike that, it can be deep-copied after use, compiled, and run under
    autocast (the norm is always computed in the weight's own precision).
    """

    weight_u: torch.Tensor
    weight_v: torch.Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight_orig = nn.Conv2d(inputs, outputs, kernel, bias=False).weight
        self.register_buffer("weight_u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("weight_v", torch.zeros(inputs * kernel**2))
        for _ in range(_FIRST_ITERATIONS):
            self._iterate()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            if self.training:
                self._iterate()
            weight = self.weight_orig / self._largest_singular_value()
        return F.conv2d(features, weight, None, self.stride, padding=self.padding)

    def _largest_singular_value(self) -> torch.Tensor:
        # Copies, since the next forward pass changes the vectors before this one's backward reads them.
        left, right = self.weight_u.clone(), self.weight_v.clone()
        return torch.dot(left, torch.mv(self.weight_orig.flatten(1), right))

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(F.normalize(torch.mv(matrix.t(), self.weight_u), dim=0, eps=1e-12))
        self.weight_u.copy_(F.normalize(torch.mv(matrix, self.weight_v), dim=0, eps=1e-12))
