"""The border between stored 8-bit pixels and the float32 tensors that degradations work on."""

from __future__ import annotations

import numpy as np
import torch


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """uint8 N×H×W×C to contiguous float32 N×C×H×W in [0, 1], in memory of its own."""
    planes = np.divide(pixels.transpose(0, 3, 1, 2), 255, dtype=np.float32, order="C")
    return torch.from_numpy(planes)


def to_uint8(batch: torch.Tensor) -> np.ndarray:
    """Float N×C×H×W to uint8 N×H×W×C: clamped to [0, 1], rounded half up."""
    levels = (batch * 255).add_(0.5).clamp_(0, 255)
    return levels.permute(0, 2, 3, 1).to(torch.uint8, memory_format=torch.contiguous_format).numpy()
