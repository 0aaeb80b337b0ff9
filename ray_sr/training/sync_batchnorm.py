"""BatchNorm over the batch of all workers: torch's own on GPUs, and the same arithmetic by gloo on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOfAll(torch.autograd.Function):
    """Sum over the workers; each one's gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for CPUs, which torch's refuses. Same parameters, buffers and results."""

    def forward(self, photos: Tensor) -> Tensor:
        if not self.training:
            return super().forward(photos)
        values = photos.float()
        sums = torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        count = torch.tensor(float(values.numel() // values.shape[1]))
        distributed.all_reduce(count)
        mean, square = _SumOfAll.apply(sums) / count
        variance = (square - mean.square()).clamp_min(0)  # rounding may leave it below
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(photos.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise_batchnorm(module: nn.Module) -> None:
    """Replace the BatchNorm2d inside a module, in place; parameters and buffers stay the same objects."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, _synchronised(child))
        else:
            synchronise_batchnorm(child)


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    kind = nn.SyncBatchNorm if norm.weight.device.type == "cuda" else CpuSyncBatchNorm
    other = kind(norm.num_features, norm.eps, norm.momentum)
    other._parameters, other._buffers = norm._parameters, norm._buffers
    return other.train(norm.training)
