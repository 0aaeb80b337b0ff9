"""Copies between host and GPU that run beside the network: through page-locked memory, on streams of their own.

Nothing here waits but what `download` returns. torch keeps page-locked memory for the next tiles of its size, and
gives no memory of either side away before the copies from and to it are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Copies:
    """The way to a GPU and the way back. For several threads at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._there, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def upload(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device, for the stream that the network runs on."""
        network = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._there):
            copied = tensor.pin_memory().to(self._device, non_blocking=True)
        network.wait_stream(self._there)
        copied.record_stream(network)
        return copied

    def download(self, tensors: Iterable[Tensor]) -> Callable[[], list[Tensor]]:
        """Begins to copy tensors of the network's stream to the host; what it returns waits for them."""
        packed = [tensor.contiguous() for tensor in tensors]
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            copied = [tensor.to("cpu", non_blocking=True) for tensor in packed]  # page-locked by torch
            done = self._back.record_event()
        for tensor in packed:
            tensor.record_stream(self._back)

        def wait() -> list[Tensor]:
            done.synchronize()
            return copied

        return wait
