"""Two workers with half the batch each take the same step as one with the whole batch (gloo, no Ray)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from ray_sr.losses import build_content_losses
from ray_sr.recipe import FeaturesSpec
from ray_sr.training.state import TrainState
from ray_sr.training.steps import GanStep, PretrainStep
from tests.training.test_steps import FLOAT32, batch, state_of

GAMES = {
    "pretrain": None,
    "bce": "{kind: bce}",
    "hinge": "{kind: hinge}",
    "wgan-gp": "{kind: wasserstein, gradient_penalty: 10}",
}
STEPS = 2


def make_state(game: str) -> TrainState:
    """Networks without BatchNorm, whose statistics would differ between halves of a batch."""
    # Adam divides by the gradient's size: with its tiny eps it would blow up the last bit of gradients near zero.
    smooth = "{lr: 1e-2, eps: 0.1}"
    if not GAMES[game]:
        return state_of(f"pretrain.optimizer={smooth}", stage="pretrain")
    return state_of(
        "discriminator={kind: unet, channels: 4}",
        f"gan.adversarial={GAMES[game]}",
        f"gan.generator_optimizer={smooth}",
        f"gan.discriminator_optimizer={smooth}",
    )


def make_step(state: TrainState, game: str, world: int) -> PretrainStep | GanStep:
    def shared(module: torch.nn.Module) -> torch.nn.Module:
        return DistributedDataParallel(module) if world > 1 else module

    assert state.generator_optimizer
    recipe = state.recipe
    if game == "pretrain":
        assert recipe.pretrain
        losses = build_content_losses(recipe.pretrain.losses, FeaturesSpec())
        return PretrainStep(shared(state.generator), state.generator_optimizer, losses, FLOAT32)
    assert recipe.gan
    assert state.discriminator
    assert state.discriminator_optimizer
    return GanStep(
        shared(state.generator),
        shared(state.discriminator),
        state.generator_optimizer,
        state.discriminator_optimizer,
        build_content_losses(recipe.gan.losses, FeaturesSpec()),
        recipe.gan.adversarial,
        FLOAT32,
    )


def share_of(rank: int, size: int, seed: int) -> torch.Generator:
    """A generator at the draws that belong to one rank where the whole batch draws them in one row."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(rank * size, generator=generator)
    return generator


def take_steps(game: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights of both networks after the steps, and the last gradients."""
    torch.set_num_threads(1)
    state = make_state(game)
    step = make_step(state, game, world)
    size = 4 // world
    for number in range(STEPS):
        lr, hr = batch(number)
        mine = slice(rank * size, (rank + 1) * size)
        step.run(lr[mine], hr[mine], number, share_of(rank, size, number))
    found = {f"g.{name}": parameter for name, parameter in state.generator.named_parameters()}
    if state.discriminator is not None and game != "pretrain":
        found |= {f"d.{name}": parameter for name, parameter in state.discriminator.named_parameters()}
    gradients = {f"{name}.grad": value.grad for name, value in found.items() if value.grad is not None}
    return {name: value.detach().clone() for name, value in {**found, **gradients}.items()}


def _worker(rank: int, port: int, folder: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save({game: take_steps(game, rank, 2) for game in GAMES}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What two workers ended with, for every game."""
    folder = tmp_path_factory.mktemp("halves")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("game", GAMES)
def test_two_halves_equal_the_whole(game: str, halves: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    whole = take_steps(game, 0, 1)
    first, second = (half[game] for half in halves)
    assert first.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the workers"
        torch.testing.assert_close(
            first[name], value, atol=1e-6, rtol=1e-3, msg=f"{name} differs from one worker's"
        )
