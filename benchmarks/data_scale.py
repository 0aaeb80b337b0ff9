"""How the data plane grows: memory over ten times more data, time for ten times more photographs.

    python -m benchmarks.data_scale [--photos 100000] [--sub-images 200] [--json FILE]

Memory is the largest sum over this process and all that it started (Ray's included, shared pages counted once)
while one epoch of x4 crops is streamed from storage. Photographs are made: noise over a slope, so that they are
as large as real ones when stored.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_sr.bench.data_plane import PeakMemory
from ray_sr.cluster import disconnect, local_ray
from ray_sr.data.batches import ray_data_batches
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import open_stream
from ray_sr.recipes.reader import parse_recipe

GROWTH = 10
SIDE, SMALL_SIDE = 480, 48
BATCH = 16
OBJECT_STORE = 1 << 30
RECIPE = f"""
name: scale
pretrain: {{steps: 1}}
data: {{crop: 96, batch: {BATCH}, crops_per_image: 4, cache: stream}}
"""


def make_photos(folder: Path, first: int, count: int, side: int) -> None:
    """Write `count` photos of `side`×`side` px, seeded by their numbers."""
    rows, columns = np.mgrid[:side, :side] / side
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        slope = 90 + 60 * (rows * rng.uniform(-1, 1) + columns * rng.uniform(-1, 1))
        pixels = slope[..., None] + rng.normal(0, 4, (side, side, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:07d}.png", compress_level=1)


def make_many(folder: Path, count: int, side: int) -> None:
    """`make_photos` on all cores, in folders of a thousand."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for first in range(0, count, 1000):
            part = folder / f"{first // 1000:04d}"
            part.mkdir(parents=True)
            pool.submit(make_photos, part, first, min(1000, count - first), side)


def in_fresh_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Each measurement begins with a Ray and a memory of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def stream_epoch(shards: str) -> dict[str, Any]:
    """Peak bytes and crops/s of one epoch over a shard set, streamed from storage."""
    local_ray(cpus=2, object_store_bytes=OBJECT_STORE)
    with PeakMemory() as memory:
        stream = open_stream(parse_recipe(RECIPE), shards)
        rows = len(stream.index) // stream.visits
        began = time.perf_counter()
        batches = ray_data_batches(stream, range(rows))
        crops = sum(len(batch.hr) for batch in batches)
        seconds = time.perf_counter() - began
    disconnect()
    return {"sub_images": len(stream.index), "peak": memory.peak, "crops_per_s": crops / seconds}


def cut_photos(photos: str, shards: str, cutting: Cutting) -> dict[str, Any]:
    """Seconds for finding and for cutting photos, and peak bytes of this process alone."""
    local_ray(cpus=2, object_store_bytes=OBJECT_STORE)
    began = time.perf_counter()
    found = find_photos([photos])
    listed = time.perf_counter() - began
    began = time.perf_counter()
    with PeakMemory() as memory:
        prepared = prepare(found, shards, cutting=cutting)
    seconds = time.perf_counter() - began
    disconnect()
    return {
        "photos": len(found),
        "list_s": listed,
        "cut_s": seconds,
        "peak": memory.peak,
        "left_out": len(prepared.left_out),
    }


def memory_growth(folder: Path, sub_images: int) -> list[dict[str, Any]]:
    measured = []
    for name, count in (("one", sub_images), ("ten", GROWTH * sub_images)):
        make_many(folder / name, count, SIDE)
        cutting = Cutting(minimum=SIDE)
        in_fresh_process(cut_photos, str(folder / name), str(folder / f"{name}-shards"), cutting)
        measured.append(in_fresh_process(stream_epoch, str(folder / f"{name}-shards")))
        print(json.dumps(measured[-1]), flush=True)
    return measured


def many_photos(folder: Path, photos: int) -> list[dict[str, Any]]:
    measured = []
    cutting = Cutting(sub_image=SMALL_SIDE, step=SMALL_SIDE, minimum=SMALL_SIDE)
    for name, count in (("few", photos // GROWTH), ("many", photos)):
        make_many(folder / name, count, SMALL_SIDE)
        measured.append(in_fresh_process(cut_photos, str(folder / name), str(folder / f"{name}-shards"), cutting))
        print(json.dumps(measured[-1]), flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--sub-images", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_growth(Path(folder), options.sub_images)
        time_taken = many_photos(Path(folder), options.photos)
    growth = memory[1]["peak"] / memory[0]["peak"]
    print(f"\nmemory over {GROWTH} times more sub-images: x{growth:.3f} (target 1.1)")
    for one in time_taken:
        print(f"{one['photos']:,} photos: {1e3 * one['cut_s'] / one['photos']:.2f} ms each")
    if options.json:
        options.json.write_text(json.dumps({"memory": memory, "photos": time_taken}, indent=1))


if __name__ == "__main__":
    main()
