"""Two workers with shares of a batch take the same step as one with the whole batch (gloo, no Ray)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from ray_sr.training.state import TrainState
from ray_sr.training.steps import GanStep, MicroBatch, PretrainStep, build_step
from ray_sr.training.sync_batchnorm import synchronise_batchnorm
from tests.training.test_steps import batch, state_of

GAMES = {
    "pretrain": None,
    "bce": "{kind: bce}",
    "hinge": "{kind: hinge}",
    "feature matching": "{kind: hinge, feature_matching: 10}",
    "wgan-gp": "{kind: wasserstein, gradient_penalty: 10}",
    "bce, BatchNorm": "{kind: bce}",
    "bce, in parts": "{kind: bce}",
    "wgan-gp, in parts": "{kind: wasserstein, gradient_penalty: 10}",
}
STEPS = 2


def make_state(game: str) -> TrainState:
    """Networks without BatchNorm, whose statistics would differ between halves of a batch; or with it."""
    # Adam divides by the gradient's size: with its tiny eps it would blow up the last bit of gradients near zero.
    smooth = "{lr: 1e-2, eps: 0.1}"
    if not GAMES[game]:
        return state_of(f"pretrain.optimizer={smooth}", stage="pretrain")
    # Spectral norm takes a step in each forward pass, of which parts need more.
    critic, generator = {"BatchNorm": ("vgg", "srresnet"), "parts": ("tiny", "msrresnet")}.get(
        game.split()[-1], ("unet", "msrresnet")
    )
    return state_of(
        f"discriminator={{kind: {critic}, channels: 4}}",
        f"generator={{kind: {generator}, blocks: 1, channels: 8}}",
        f"gan.adversarial={GAMES[game]}",
        f"gan.generator_optimizer={smooth}",
        f"gan.discriminator_optimizer={smooth}",
    )


def make_step(state: TrainState, world: int) -> PretrainStep | GanStep:
    def shared(module: torch.nn.Module) -> torch.nn.Module:
        if world > 1:
            synchronise_batchnorm(module)
        return DistributedDataParallel(module) if world > 1 else module

    return build_step(state, wrap=shared)


def noise_of(rows: range, seed: int) -> torch.Generator:
    """A generator at the draws of these photos where the whole batch draws them in one row."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(rows.start, generator=generator)
    return generator


def rows_of(game: str, rank: int, world: int) -> list[range]:
    """Which photos of the batch each part has: halves of a half, of unequal number, where it goes in parts."""
    if world == 1:
        return [range(4)]
    if not game.endswith("parts"):
        return [range(2), range(2, 4)][rank : rank + 1]
    return [[range(1), range(1, 2), range(2, 3)], [range(3, 4)]][rank]


def part(rows: range, number: int, world: int) -> MicroBatch:
    lr, hr = (photos[rows.start : rows.stop] for photos in batch(number))
    made = MicroBatch(lr, hr, share=world * len(rows) / 4)
    made.noise = noise_of(rows, number)
    return made


def take_steps(game: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights of both networks after the steps, and the last gradients."""
    torch.set_num_threads(1)
    state = make_state(game)
    step = make_step(state, world)
    for number in range(STEPS):
        step.run([part(row, number, world) for row in rows_of(game, rank, world)], number)
    found = {f"g.{name}": parameter for name, parameter in state.generator.named_parameters()}
    buffers = {f"g.{name}": buffer for name, buffer in state.generator.named_buffers()}
    if state.discriminator is not None and game != "pretrain":
        found |= {f"d.{name}": parameter for name, parameter in state.discriminator.named_parameters()}
    gradients = {f"{name}.grad": value.grad for name, value in found.items() if value.grad is not None}
    return {name: value.detach().clone() for name, value in {**found, **gradients, **buffers}.items()}


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
def test_two_workers_equal_one(game: str, halves: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    whole = take_steps(game, 0, 1)
    first, second = (half[game] for half in halves)
    assert first.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the workers"
        size = float(value.abs().max())
        torch.testing.assert_close(
            first[name], value, atol=max(1e-6, 1e-4 * size), rtol=1e-3, msg=f"{name} differs from one worker's"
        )
