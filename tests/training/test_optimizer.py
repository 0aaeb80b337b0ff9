"""Schedules, the guard against steps that are not finite, and weight averaging."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_sr.errors import ResourceError
from ray_sr.recipes.training import OptimizerSpec, ScheduleSpec
from ray_sr.training.optimizer import EmaUpdate, GuardedOptimizer, ema_decay, rate_factor


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (
            ScheduleSpec(kind="multistep", milestones=[30, 60], gamma=0.1),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [30, 60], 0.1),
        ),
        (ScheduleSpec(kind="cosine"), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100)),
        (
            ScheduleSpec(kind="cosine", cycles=4),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 25),
        ),
        (
            ScheduleSpec(kind="linear", final=0.0),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, 100),
        ),
        (ScheduleSpec(kind="constant"), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_equal_torch(schedule: ScheduleSpec, reference) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer)
    for step in range(100):
        assert rate_factor(schedule, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        scheduler.step()


def test_warmup_rises_to_one_and_linear_waits_for_its_start() -> None:
    assert [rate_factor(ScheduleSpec(warmup=4), step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    late = ScheduleSpec(kind="linear", start=50, final=0.5)
    assert rate_factor(late, 50, 100) == 1.0
    assert rate_factor(late, 75, 100) == pytest.approx(0.75)


def _optimizer(weight: nn.Parameter, **options: float) -> GuardedOptimizer:
    return GuardedOptimizer([weight], OptimizerSpec(lr=0.1), ScheduleSpec(), 10, **options)  # type: ignore[arg-type]


def test_steps_equal_plain_adam() -> None:
    weight, twin = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours, plain = _optimizer(weight), torch.optim.Adam([twin], 0.1)
    for number in range(5):
        weight.grad = torch.cos(weight.detach() * (number + 1))
        twin.grad = weight.grad.clone()
        ours.step(number)
        plain.step()
        torch.testing.assert_close(weight, twin, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(poison: float) -> None:
    weight, twin = (nn.Parameter(torch.ones(3)) for _ in range(2))
    ours, clean = _optimizer(weight), _optimizer(twin)
    for number, gradient in enumerate([1.0, poison, poison, 2.0]):
        weight.grad = torch.full((3,), gradient)
        ours.step(number)
        if math.isfinite(gradient):
            twin.grad = torch.full((3,), gradient)
            clean.step(number)
        else:
            assert float(ours.bad_in_a_row) == number
    torch.testing.assert_close(weight, twin)
    assert float(ours.bad) == 2
    assert float(ours.bad_in_a_row) == 0


def test_gradients_are_clipped_by_norm() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = _optimizer(weight, clip=1.0)
    weight.grad = torch.tensor([30.0, 40.0])
    optimizer.step(0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_average_follows_parameters_and_batchnorm_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = copy.deepcopy(model).eval()
    model(torch.randn(8, 3, 9, 9) * 5 + 3)
    with torch.no_grad():
        model[0].weight.add_(1)
    before = copy.deepcopy(average.state_dict())
    EmaUpdate(average, model).run(0.9)
    for name, value in average.state_dict().items():
        expected = model.state_dict()[name]
        if expected.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * expected
        torch.testing.assert_close(value, expected)


def test_average_equals_the_model_after_convergence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = copy.deepcopy(model)
    model(torch.randn(8, 3, 9, 9) * 5 + 3)
    for _ in range(200):
        EmaUpdate(average, model).run(0.9)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_average_forgets_the_first_weights_soon_and_then_keeps_its_decay() -> None:
    first = 1.0
    for step in range(100):
        first *= ema_decay(0.999, step)
    assert first < 1e-6
    assert ema_decay(0.999, 100_000) == 0.999
    assert [ema_decay(0.0, step) for step in (0, 7)] == [0.0, 0.0]


def test_wsd_waits_and_then_falls_as_a_root() -> None:
    schedule = ScheduleSpec(kind="wsd", warmup=10, decay=25, final=0.1)
    rates = [rate_factor(schedule, step, 100) for step in range(100)]
    assert rates[9:76] == [1.0] * 67
    for step in range(75, 100):  # arXiv 2405.18392, eq. 2
        assert rates[step] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt((step - 75) / 25)))
    longer = [rate_factor(schedule, step, 200) for step in range(75)]
    assert longer == rates[:75]  # a run that does not decay yet can be prolonged
    assert rate_factor(ScheduleSpec(kind="wsd"), 80, 100) == 1.0
    assert rate_factor(ScheduleSpec(kind="wsd"), 90, 100) == pytest.approx(1 - math.sqrt(0.5))


# -------------------------------------------------------------------------------- those of pytorch-optimizer

LIBRARY = ("schedulefree", "adan", "soap")


def _network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


def _backward(network: nn.Module, number: int) -> None:
    picture = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(number))
    network(picture).sub(0.3).square().mean().backward()


def _library_optimizer(network: nn.Module, kind: str) -> GuardedOptimizer:
    spec = OptimizerSpec(kind=kind, lr=1e-2, weight_decay=0.01)  # type: ignore[arg-type]
    return GuardedOptimizer(list(network.parameters()), spec, ScheduleSpec(kind="cosine"), 20)


def _move(network: nn.Module, optimizer: GuardedOptimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        _backward(network, number)
        optimizer.step(number)


@pytest.mark.parametrize("kind", LIBRARY)
def test_steps_equal_the_librarys(kind: str) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    network, twin = _network(), _network()
    optimizer = _library_optimizer(network, kind)
    names = {"schedulefree": library.ScheduleFreeAdamW, "adan": library.Adan, "soap": library.SOAP}
    betas = (0.9, 0.92, 0.999) if kind == "adan" else (0.9, 0.999)
    plain = names[kind](twin.parameters(), lr=1e-2, betas=betas, eps=1e-8, weight_decay=0.01)
    for number in range(5):
        _move(network, optimizer, range(number, number + 1))
        plain.zero_grad()
        _backward(twin, number)
        plain.param_groups[0]["lr"] = 1e-2 * rate_factor(ScheduleSpec(kind="cosine"), number, 20)
        plain.step()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_library_optimizer_resumes_exactly_through_a_file(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    network = _network()
    optimizer = _library_optimizer(network, kind)
    _move(network, optimizer, range(12))
    saved = tmp_path / "state.pt"
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    _move(network, optimizer, range(12, 16))
    state = torch.load(saved, weights_only=True)
    other = _network()
    other.load_state_dict(state["network"])
    resumed = _library_optimizer(other, kind)
    resumed.load_state_dict(state["optimizer"])
    _move(other, resumed, range(12, 16))
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_library_optimizer_leaves_weights_alone_where_a_gradient_is_not_finite(kind: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    network = _network()
    optimizer = _library_optimizer(network, kind)
    _move(network, optimizer, range(3))
    before = copy.deepcopy(network.state_dict())
    _backward(network, 3)
    next(network.parameters()).grad[0] = float("nan")  # type: ignore[index]
    optimizer.step(3)
    assert (float(optimizer.bad), float(optimizer.bad_in_a_row)) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_schedule_free_averages_are_the_librarys_and_leave_no_trace() -> None:
    pytest.importorskip("pytorch_optimizer")
    network = _network()
    optimizer = _library_optimizer(network, "schedulefree")
    _move(network, optimizer, range(6))
    before = [parameter.clone() for parameter in network.parameters()]
    with optimizer.averaged():
        averages = [parameter.clone() for parameter in network.parameters()]
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))
    optimizer.inner.eval()  # type: ignore[attr-defined]
    for expected, found in zip(network.parameters(), averages, strict=True):
        assert torch.allclose(expected, found, atol=1e-7)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ResourceError, match=r"pip install 'ray-sr\[optimizers\]'"):
        _library_optimizer(_network(), "soap")
