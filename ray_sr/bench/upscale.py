"""`ray-sr bench upscale`: the upscaling engine beside a plain loop over tiles, with the same networks.

From a uint8 picture in memory to a uint8 picture in memory, so that both sides convert and round. The plain loop
has Real-ESRGAN's usual tiles: 400 px with 10 px around them. That is less than what the networks see: it works less
than the engine, whose tiles leave no seams. Weights and picture are made up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ray_sr.bench.machine import Bench
from ray_sr.bench.plain import plain_upscale
from ray_sr.models import Generator, build_generator
from ray_sr.progress import Progress
from ray_sr.recipes.networks import CompactSpec, MSRResNetSpec, NetworkSpec
from ray_sr.upscaling.engine import Engine

SIZE = (320, 480)
NETWORKS = {
    "msrresnet": NetworkSpec(scale=4, generator=MSRResNetSpec()),
    "compact": NetworkSpec(scale=4, generator=CompactSpec()),
}


def bench_upscaling(bench: Bench, size: tuple[int, int] = SIZE) -> dict[str, dict[str, Any]]:
    """Megapixels of output a second from an input of height×width `size`, medians.

    {network: {"mpx_per_s", "plain_mpx_per_s", "precision" of ours, "speedup": {"median", "lower" and "upper"
    quartile}}}.
    """
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Progress("upscaling", len(NETWORKS) * (1 + bench.rounds), "rounds") as progress:
        return {
            name: _measure(synthetic_generator(spec), picture, bench, progress) for name, spec in NETWORKS.items()
        }


def synthetic_generator(network: NetworkSpec) -> Generator:
    """In evaluation mode, with seeded initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_generator(network).eval()


def _measure(generator: Generator, picture: np.ndarray, bench: Bench, progress: Progress) -> dict[str, Any]:
    engine = Engine(generator, generator.capability, device=bench.device)
    generator.to(bench.device)
    turns = {
        "ours": lambda: engine.run(picture, np.uint8),
        "plain": lambda: plain_upscale(generator, picture, bench.device),
    }
    times = bench.take_turns(turns, progress.advance)
    height, width = picture.shape[:2]
    megapixels = height * width * engine.scale**2 / 1e6
    return {
        "mpx_per_s": megapixels / times.median("ours"),
        "plain_mpx_per_s": megapixels / times.median("plain"),
        "precision": engine.precision,
        "speedup": times.speedup("ours", "plain"),
    }
