"""Small generators for the tests of the model store."""

from __future__ import annotations

from pathlib import Path

import torch

from ray_sr.models import Generator, build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.training import PretrainSpec

NETWORK = NetworkSpec(scale=2, generator=CompactSpec(convs=1, channels=4))
RECIPE = Recipe(
    name="small", description="A | test", scale=2, generator=NETWORK.generator, pretrain=PretrainSpec(steps=5)
)
LARGE = NetworkSpec(scale=2, generator=CompactSpec(convs=16, channels=64))  # 2.4 MB


def generator(seed: int, network: NetworkSpec = NETWORK) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_generator(network).eval()


def output(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(torch.linspace(0, 1, 3 * 5 * 4).reshape(1, 3, 5, 4))


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
