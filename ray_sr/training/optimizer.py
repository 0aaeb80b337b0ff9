"""An optimizer with its schedule, gradient clipping and a guard against steps that are not finite."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ray_sr.errors import ResourceError
from ray_sr.recipes.training import OptimizerSpec, ScheduleSpec
from ray_sr.training.muon import Muon, matrices_of


def rate_factor(schedule: ScheduleSpec, step: int, steps: int) -> float:
    """Share of the learning rate at a step (from 0) of a stage of `steps`; without state, so resuming is exact."""
    warmup = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    if schedule.kind == "multistep":
        return warmup * schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        cycle = steps / schedule.cycles
        along = step % cycle / cycle if step < steps else 1.0
        share = 0.5 * (1 + math.cos(math.pi * along))
    elif schedule.kind == "wsd":
        decay = schedule.decay or max(1, steps // 5)
        share = 1 - math.sqrt(min(max(0, step - (steps - decay)) / decay, 1.0))
    elif schedule.kind == "linear":
        share = 1 - max(0, step - schedule.start) / (steps - schedule.start)
    else:
        return warmup
    return warmup * (schedule.final + (1 - schedule.final) * max(share, 0.0))


_LIBRARY = {"schedulefree": "ScheduleFreeAdamW", "adan": "Adan", "soap": "SOAP"}
_PACKAGE = "pytorch_optimizer"


def check_optimizer(spec: OptimizerSpec) -> None:
    """Raises ResourceError where the library of this optimizer is not installed."""
    if spec.kind in _LIBRARY and importlib.util.find_spec(_PACKAGE) is None:
        raise ResourceError(f"optimizer {spec.kind} needs pytorch-optimizer: pip install 'ray-sr[optimizers]'")


def _by_library(parameters: list[nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    check_optimizer(spec)
    kind = getattr(importlib.import_module(_PACKAGE), _LIBRARY[spec.kind])
    first, second = spec.betas
    betas = (first, spec.beta_difference, second) if spec.kind == "adan" else spec.betas
    made = kind(parameters, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay)
    assert isinstance(made, torch.optim.Optimizer)
    return made


class GuardedOptimizer:
    """An optimizer that leaves weights alone where a gradient is not finite.

    Adam, AdamW and Muon do so without waiting for the GPU, those of pytorch-optimizer wait. Beside Muon, Adam
    moves what is no matrix.

    `bad` counts such steps, `bad_in_a_row` those since the last good one; both are tensors on the device.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        spec: OptimizerSpec,
        schedule: ScheduleSpec,
        steps: int,
        clip: float | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.schedule, self.steps, self.clip = schedule, steps, clip
        self.base, self.matrix_base = spec.lr, spec.matrix_lr
        matrices = matrices_of(self.parameters) if spec.kind == "muon" else []
        self.muon = Muon(matrices, spec.momentum, spec.weight_decay) if matrices else None
        others = [p for p in self.parameters if not any(p is matrix for matrix in matrices)]
        self.is_fused = spec.kind not in _LIBRARY
        self.averages = spec.kind == "schedulefree"
        kind = torch.optim.Adam if spec.kind == "adam" else torch.optim.AdamW
        self.inner: torch.optim.Optimizer = (
            kind(others, spec.lr, spec.betas, spec.eps, weight_decay=spec.weight_decay, fused=True)
            if self.is_fused
            else _by_library(others, spec)
        )
        device = self.parameters[0].device
        self.bad = torch.zeros((), device=device)
        self.bad_in_a_row = torch.zeros((), device=device)
        self.not_finite = torch.zeros((), device=device)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, number: int, skip: Tensor | None = None) -> None:
        """Apply the gradients as step `number` (from 0) of the stage; not where `skip` is 1."""
        factor = rate_factor(self.schedule, number, self.steps)
        for group in self.inner.param_groups:
            group["lr"] = self.base * factor
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.not_finite = (~torch.isfinite(norm)).float()
        left_out = self.not_finite if skip is None else torch.maximum(self.not_finite, skip)
        if self.is_fused:
            self.inner.found_inf = left_out  # type: ignore[attr-defined]  # the fused kernels skip the update where it is 1
            self.inner.step()
        elif not bool(left_out):
            self.inner.step()
        if self.muon:
            self.muon.step(self.matrix_base * factor, left_out)
        self.bad += self.not_finite
        self.bad_in_a_row = (self.bad_in_a_row + 1) * self.not_finite

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are the averages that a schedule-free optimizer is about; then as before."""
        before = [parameter.clone() for parameter in self.parameters]
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                if "z" in self.inner.state[parameter]:
                    parameter.lerp_(self.inner.state[parameter]["z"], 1 - 1 / group["betas"][0])
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)

    def rate(self, number: int) -> float:
        return self.base * rate_factor(self.schedule, number, self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {**self.inner.state_dict(), **({"muon": self.muon.state_dict()} if self.muon else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is that of another kind of optimizer, or of other parameters."""
        if ("muon" in state) != (self.muon is not None):
            raise ValueError("the checkpoint's optimizer is of another kind")
        if self.muon:
            self.muon.load_state_dict(state["muon"])
        self.inner.load_state_dict({key: value for key, value in state.items() if key != "muon"})


class BufferGuard:
    """Takes BatchNorm statistics back after a step that was not finite: the weights' guard does not see them.

    All buffers as one vector, because a network has dozens of them and each launch costs as much as its arithmetic.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._before = self._joined()

    def remember(self) -> None:
        self._before = self._joined()

    def restore_where(self, bad: Tensor) -> None:
        """Back to what was remembered where `bad` (a scalar on the device) is above 0."""
        if self._buffers:
            kept = torch.where(bad > 0, self._before, self._joined()).split(self._sizes)
            views = [flat.view_as(buffer) for flat, buffer in zip(kept, self._buffers, strict=True)]
            torch._foreach_copy_(self._buffers, views)

    def _joined(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else torch.empty(0)


def ema_decay(decay: float, step: int) -> float:
    """Decay of the averaged generator at a step (from 0): lower at first, so that the first weights fade.

    As TensorFlow's ExponentialMovingAverage has it: with 0.999 throughout, 37 % of the weights of step 0 would
    be left after 1,000 steps.
    """
    return min(decay, (1 + step) / (10 + step))


class EmaUpdate:
    """Moves `average` towards `model`: parameters and floating buffers (BatchNorm statistics) alike.

    Keeps the lists of their tensors, which stay the same objects: two state dicts a step cost milliseconds.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        self._moved, self._copied = (
            ([old for old, _ in some], [new for _, new in some])
            for some in ([p for p in pairs if p[0].is_floating_point() is floating] for floating in (True, False))
        )

    @torch.no_grad()
    def run(self, decay: float) -> None:
        torch._foreach_lerp_(*self._moved, 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
