"""What it gains that equal tiles and equal frames of a clip are computed once.

    python -m benchmarks.tile_reuse [--rounds 3]

Two made-up clips, 24 frames of 320×180: a screen on which a pointer moves and stands still by turns, and a film
with new noise in every frame, where nothing can be gained and hashing costs. The same engine runs each with and
without its memory of tiles; weights are made up. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from ray_sr.bench.machine import Bench
from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine
from ray_sr.upscaling.tile_results import TileResults
from ray_sr.video.rendering import FrameUpscaler

FRAMES, HEIGHT, WIDTH, SCALE, TILE = 24, 180, 320, 2, 96


def screen() -> list[np.ndarray]:
    """A still picture; for half of the frames a pointer moves over it."""
    still = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames = []
    for index in range(FRAMES):
        frame = still.copy()
        left = 40 + 8 * min(index, FRAMES // 2)
        frame[60:76, left : left + 10] = 255
        frames.append(frame)
    return frames


def film() -> list[np.ndarray]:
    """Nothing is twice the same."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(FRAMES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    network = build_generator(NetworkSpec(scale=SCALE, generator=CompactSpec(convs=4, channels=24))).eval()
    engine = Engine(network, network.capability, device="cpu", precision="float32", tile=TILE)
    for name, frames in (("screen", screen()), ("film", film())):

        def once(frames: list[np.ndarray] = frames) -> None:
            engine.tile_results = TileResults()
            upscaler = FrameUpscaler(engine, (HEIGHT * SCALE, WIDTH * SCALE))
            for frame in frames:
                upscaler(frame)

        def always(frames: list[np.ndarray] = frames) -> None:
            engine.tile_results = None
            for frame in frames:
                engine.run(frame, np.uint8)

        times = Bench(torch.device("cpu"), rounds, "cpu").take_turns({"once": once, "always": always})
        print(json.dumps({name: times.speedup("once", "always"), "seconds": times.seconds}), flush=True)


if __name__ == "__main__":
    main()
