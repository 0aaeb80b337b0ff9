"""CUDA without a GPU: tensors that have a device and a shape and no values, and a card that is only described."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GIB = 1 << 30


class Card:
    """What torch.cuda tells of the card."""

    name = "Made-up GPU"
    total_memory = 24 * GIB

    def __init__(self, capability: tuple[int, int]) -> None:
        self.major, self.minor = capability


def describe_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (8, 9)) -> None:
    """Let torch.cuda answer for a card of this compute capability."""
    card = Card(capability)
    answers: dict[str, Any] = {
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: card.name,
        "get_device_properties": lambda device=None: card,
        "mem_get_info": lambda device=None: (20 * GIB, 24 * GIB),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))


@contextmanager
def kept_settings() -> Iterator[None]:
    """What a training on a GPU sets for the whole process is as before afterwards."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    former = (matmul.fp32_precision, convolution.fp32_precision, torch.backends.cudnn.benchmark)
    try:
        yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision, torch.backends.cudnn.benchmark = former
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


class Streams:
    """torch.cuda's streams by their names, and what was asked of them, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._made = 0
        self._current = [_Stream("network", self.log)]
        answers: dict[str, Any] = {"Stream": self._make, "stream": self._enter, "current_stream": self._now}
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream))

    def _make(self, device: Any = None) -> _Stream:
        self._made += 1
        return _Stream(("there", "back")[(self._made - 1) % 2], self.log)

    def _now(self, device: Any = None) -> _Stream:
        return self._current[-1]

    @contextmanager
    def _enter(self, stream: _Stream) -> Iterator[None]:
        self._current.append(stream)
        self.log.append(f"{stream.name} begins")
        yield
        self._current.pop()

    def _record(self, tensor: torch.Tensor, stream: _Stream) -> None:
        assert tensor.device.type == "cuda"
        self.log.append(f"kept for {stream.name}")


class _Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def wait_stream(self, other: _Stream) -> None:
        self._log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None:
        self._log.append(f"host waits for {self.name}")


class Waits(TorchDispatchMode):
    """Names of the operations for which a CPU would wait until its GPU has done all that it was given.

    Copies between the two that are not `non_blocking`, and values that are read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            self.found.append(name)
        result = func(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if name == "aten::copy_" else args[0]
            target = args[0] if name == "aten::copy_" else result
            waited = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
            if isinstance(source, FakeTensor) and source.device.type != target.device.type and waited:
                self.found.append(name)
        return result


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors without values on any device; real ones that meet them count as such.

    Autograd's engine asks the driver of the device, so that its gradients are made here: of the right places in the
    graph, shapes and devices. Backward formulas are torch's own, and run on CPUs in all other tests.
    """
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(FakeTensor, "__deepcopy__", _deepcopy, raising=False)
        patch.setattr(torch.autograd, "backward", _backward)
        patch.setattr(torch.autograd, "grad", _grad)
        yield


def read_as(patch: pytest.MonkeyPatch, truth: bool = True) -> None:
    """Fake tensors of the host can be read: as `truth`, and as zeros. Those of a GPU cannot."""
    patch.setattr(FakeTensor, "numpy", _zeros, raising=False)
    patch.setattr(FakeTensor, "tolist", lambda tensor: _zeros(tensor).tolist(), raising=False)
    patch.setattr(FakeTensor, "__bool__", lambda tensor: truth, raising=False)
    patch.setattr(FakeTensor, "__float__", lambda tensor: 0.0, raising=False)


def _zeros(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.device.type == "cpu"
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


def _deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """torch's own copies the mode along, which ends the process."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    memo[id(tensor)] = copied
    return copied


def _backward(loss: torch.Tensor, *rest: Any, inputs: Any = None, **options: Any) -> None:
    """Gives every leaf of the graph, or the `inputs`, a gradient."""
    for leaf in inputs or _leaves(loss):
        leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad + torch.zeros_like(leaf)


def _grad(output: torch.Tensor, inputs: torch.Tensor, create_graph: bool = False, **options: Any) -> Any:
    gradient = torch.zeros_like(inputs)
    return (gradient + output.sum() if create_graph else gradient,)


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    seen, waiting, found = set(), [loss.grad_fn], []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _apply(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """`module.to(...)` with new parameters: torch's own swaps their contents, which these do not allow."""
    for child in module.children():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module
