"""Where and in which precision networks run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ray_sr.errors import ResourceError
from ray_sr.recipes.training import TrainingSpec
from ray_sr.upscaling.accelerator import (
    describe_gpu,
    describe_runtime,
    limit_memory,
    require_usable,
    set_float32_products,
)
from ray_sr.upscaling.precision import has_fast_bfloat16, try_out

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device, the dtype of autocast (None: float32 throughout) and the memory layout of the networks."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    memory_format: torch.memory_format

    @classmethod
    def of(cls, training: TrainingSpec, device: torch.device) -> Compute:
        """The compute of a worker on this device, and torch's global settings for it.

        Raises ResourceError for a GPU that is too old for torch's wheels or for the precision asked for.
        """
        require_usable(device)
        bf16 = training.precision == "bf16" or (training.precision == "auto" and has_fast_bfloat16(device))
        if device.type == "cuda":
            if training.precision == "bf16" and not has_fast_bfloat16(device):
                name = torch.cuda.get_device_name(device)
                raise ResourceError(f"training.precision bf16: {name} has no bfloat16: set it to auto or fp32")
            set_float32_products("tf32" if training.tf32 else "ieee")
            torch.backends.cudnn.benchmark = not training.deterministic  # crops are of one size
            limit_memory(training.gpus_per_worker, device)
            _set_deterministic(training.deterministic)
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        return cls(device, torch.bfloat16 if bf16 else None, layout)

    def with_exact_end(self, generator: nn.Module) -> None:
        """Let the generator's last convolution run in float32 under autocast, as the engine has it.

        What it gives are the picture's own values: bfloat16 would round them to 8 bits of mantissa before the loss.
        """
        if self.autocast_dtype is None:
            return
        was_training = generator.training
        last = try_out(generator.eval(), 3).last
        generator.train(was_training)
        if last is None:
            return
        convolve = type(last).forward

        def in_float32(photos: Tensor) -> Tensor:
            with torch.autocast(photos.device.type, enabled=False):
                result: Tensor = convolve(last, photos.float())
            return result

        last.forward = in_float32

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def place(self, module: Module) -> Module:
        return module.to(self.device).to(memory_format=self.memory_format)

    def to_input(self, photos: np.ndarray | Tensor) -> Tensor:
        """uint8 or uint16 N×H×W×3 -> float32 N×3×H×W in [0, 1] on the device. As channels_last without a copy."""
        tensor = torch.as_tensor(photos).to(self.device, non_blocking=True)
        highest = torch.iinfo(tensor.dtype).max
        return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.memory_format).div_(highest)

    def describe(self) -> str:
        """GPU with driver and runtime, precision and layout, in one line; "CPU, …" without a GPU."""
        layout = "channels_last" if self.memory_format is torch.channels_last else "contiguous"
        if self.device.type != "cuda":
            return f"CPU, {'bf16' if self.autocast_dtype else 'fp32'}, {layout}"
        slow = "" if has_fast_bfloat16(self.device) else " (this GPU has no bfloat16)"
        precision = "bf16" if self.autocast_dtype else f"fp32{slow}"
        return f"{describe_gpu(self.device)}, {describe_runtime()}, {precision}, {layout}"


def _set_deterministic(wanted: bool) -> None:
    """Results that repeat bit for bit on a GPU; an operation that has no such form then raises RuntimeError."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    if wanted != torch.are_deterministic_algorithms_enabled():  # setting it takes seconds
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
