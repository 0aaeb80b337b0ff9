"""The plain loop over tiles and the engine make the same picture; the command's JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ray_sr.bench.plain import plain_upscale
from ray_sr.bench.upscale import NETWORKS, synthetic_generator
from ray_sr.cli import cli
from ray_sr.models import Generator
from ray_sr.upscaling import Engine
from tests.photos import real_photos

CPU = torch.device("cpu")


@pytest.fixture(params=NETWORKS)
def generator(request: pytest.FixtureRequest) -> Generator:
    return synthetic_generator(NETWORKS[request.param])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(real_photos()["coffee"][100:130, 100:140])


def difference(first: np.ndarray, second: np.ndarray) -> int:
    assert first.shape == second.shape
    assert first.dtype == second.dtype == np.uint8
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def test_engine_and_plain_loop_make_the_same_picture(generator: Generator, picture: np.ndarray) -> None:
    plain = plain_upscale(generator, picture, CPU)
    exact = Engine(generator, generator.capability, device="cpu", precision="float32").run(picture, np.uint8)
    assert difference(plain, exact) <= 1


def test_plain_tiles_fit_together(generator: Generator, picture: np.ndarray) -> None:
    """With a margin that covers what the network sees, tiles of any size give the untiled result."""
    whole = plain_upscale(generator, picture, CPU)
    margin = generator.capability.receptive_field
    assert difference(plain_upscale(generator, picture, CPU, tile=21, pad=margin), whole) <= 1


def test_the_command_prints_the_rates_of_both() -> None:
    threads = torch.get_num_threads()
    arguments = ["bench", "upscale", "--rounds", "2", "--threads", "1", "--size", "16", "24", "--json"]
    try:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"msrresnet", "compact"}
    for found in result.values():
        assert min(found["mpx_per_s"], found["plain_mpx_per_s"]) > 0
        assert found["speedup"]["lower"] <= found["speedup"]["median"] <= found["speedup"]["upper"]
