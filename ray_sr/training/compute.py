"""Where and in which precision networks run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ray_sr.recipes.training import TrainingSpec
from ray_sr.upscaling.precision import has_fast_bfloat16

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device, the dtype of autocast (None: float32 throughout) and the memory layout of the networks."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    memory_format: torch.memory_format

    @classmethod
    def of(cls, training: TrainingSpec, device: torch.device) -> Compute:
        bf16 = training.precision == "bf16" or (training.precision == "auto" and has_fast_bfloat16(device))
        if device.type == "cuda":
            product = "tf32" if training.tf32 else "ieee"
            torch.backends.cuda.matmul.fp32_precision = product
            torch.backends.cudnn.conv.fp32_precision = product  # type: ignore[attr-defined]
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        return cls(device, torch.bfloat16 if bf16 else None, layout)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def place(self, module: Module) -> Module:
        return module.to(self.device).to(memory_format=self.memory_format)

    def to_input(self, photos: np.ndarray | Tensor) -> Tensor:
        """uint8 N×H×W×3 -> float32 N×3×H×W in [0, 1] on the device. A view as channels_last costs no copy."""
        tensor = torch.as_tensor(photos).to(self.device, non_blocking=True)
        return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format).div_(255)

    def describe(self) -> str:
        precision = "bf16" if self.autocast_dtype else "fp32"
        layout = "channels_last" if self.memory_format is torch.channels_last else "contiguous"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {precision}, {layout}"
