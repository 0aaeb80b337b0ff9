"""Muon: against torch's own on matrices, and as what a run needs: guarded, resumable, for convolutions."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_sr.errors import ModelError
from ray_sr.models import build_generator
from ray_sr.recipes.reader import load_recipe
from ray_sr.recipes.training import OptimizerSpec, ScheduleSpec
from ray_sr.training.compute import Compute
from ray_sr.training.muon import Muon, matrices_of, orthogonal
from ray_sr.training.optimizer import GuardedOptimizer
from ray_sr.training.state import STATE_FILE, TrainState

GO = torch.zeros(())
SPEC = OptimizerSpec(kind="muon", lr=1e-3, matrix_lr=0.02, weight_decay=0.1)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 40, 3), nn.Conv2d(40, 40, 3), nn.Conv2d(40, 96, 3), nn.Conv2d(96, 3, 1))


def _guarded(network: nn.Module) -> GuardedOptimizer:
    return GuardedOptimizer(list(network.parameters()), SPEC, ScheduleSpec(), 10)


def _set_gradients(network: nn.Module, number: int) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.sin(parameter.detach() * (7 + number)).clone(memory_format=torch.preserve_format)


@pytest.mark.parametrize("shape", [(1, 64, 576), (3, 96, 40), (2, 64, 64)])
def test_singular_values_come_close_to_one_in_the_directions_of_the_matrix(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    along = (u.mT @ made @ vh.mT).diagonal(dim1=1, dim2=2)
    # A square random matrix has singular values near 0, which five iterations lift but not up to one.
    assert along.quantile(0.1) > 0.6
    assert along.max() < 1.3
    assert (u.mT @ made @ vh.mT - torch.diag_embed(along)).abs().max() < 0.05


@pytest.mark.parametrize("shape", [(64, 160), (96, 40)])
def test_steps_equal_those_of_torch(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weight, twin = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([weight], momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.Muon([twin], lr=0.02, momentum=0.9, weight_decay=0.1)
    for number in range(5):
        weight.grad = torch.cos(start * (number + 1))
        twin.grad = weight.grad.clone()
        ours.step(0.02, GO)
        theirs.step()
    moved = (twin - start).norm()
    assert (weight - twin).norm() < 0.02 * moved  # torch rounds to bfloat16
    assert moved > 0.5


def test_convolutions_are_matrices_in_either_memory_layout() -> None:
    plain, last = _network(), _network().to(memory_format=torch.channels_last)
    for network in (plain, last):
        optimizer = _guarded(network)
        for number in range(3):
            _set_gradients(network, number)
            optimizer.step(number)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0.02)


def test_the_first_and_the_last_layer_and_biases_are_left_to_adam() -> None:
    generator = build_generator(load_recipe("light-x4", []).network)
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    chosen = [names[id(parameter)] for parameter in matrices_of(list(generator.parameters()))]
    assert chosen == [f"body.{block}.conv{conv}.weight" for block in range(16) for conv in (1, 2)]
    network = _network()
    before = copy.deepcopy(network.state_dict())
    _set_gradients(network, 1)
    _guarded(network).step(0)
    moved = {name: (value - before[name]).abs().max().item() for name, value in network.state_dict().items()}
    assert all(
        moved[name] == pytest.approx(1e-3, rel=0.05) for name in ("0.weight", "0.bias", "1.bias", "3.weight")
    )
    assert moved["1.weight"] != pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    network, twin = _network(), _network()
    ours, clean = _guarded(network), _guarded(twin)
    for number in range(3):
        _set_gradients(network, number)
        if number == 1:
            network[2].weight.grad[0, 0, 0, 0] = poison
        ours.step(number)
        if number != 1:
            _set_gradients(twin, number)
            clean.step(number)
    assert float(ours.bad) == 1
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_all_parameters_are_cleared() -> None:
    network = _network()
    _set_gradients(network, 0)
    _guarded(network).zero_grad()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_saved_optimizer_goes_on_exactly() -> None:
    network = _network()
    first = _guarded(network)
    for number in range(2):
        _set_gradients(network, number)
        first.step(number)
    again = copy.deepcopy(network)
    second = _guarded(again)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, of in ((first, network), (second, again)):
        _set_gradients(of, 2)
        optimizer.step(2)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_cannot_go_on_with_another_optimizer(tmp_path: Path) -> None:
    recipe = load_recipe("light-x4", ["generator.blocks=1", "data.crop=32"])
    compute = Compute.of(recipe.training, torch.device("cpu"))
    TrainState(recipe, compute).snapshot().write(tmp_path)
    TrainState(recipe, compute).load(tmp_path)
    other = load_recipe("light-x4", ["generator.blocks=1", "data.crop=32", "pretrain.optimizer.kind=adam"])
    with pytest.raises(ModelError, match=f"{STATE_FILE}.*another kind.*began with"):
        TrainState(other, compute).load(tmp_path)
