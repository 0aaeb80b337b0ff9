"""Training crops a second: this project's data plane beside the loaders that trainers commonly use.

    python -m benchmarks.data_plane PHOTOS [--rounds 3] [--seconds 4] [--processes 2] [--json FILE]

All contestants make batches of 16 HR crops of 96 px with their x4 LR crops of the same photographs on the same
number of processes. They take turns, and each figure is the median of the rounds, because other work on the
machine comes and goes; the ratios are the medians of the ratios within a round.

    whole photos   torch DataLoader, decodes a whole photograph for each crop (BasicSR's folder reading)
    PNG            torch DataLoader over PNG sub-images of 480 px, 4 crops of each it decodes
    memory map     bare loop over raw sub-images, 4 crops of each, one process for each core, nothing handed on
    OpenCV         torch DataLoader over raw sub-images, second-order degradation by OpenCV (needs opencv)

The first three cut and turn with NumPy and shrink with torch's antialiased bicubic on uint8, the fastest there is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.second_order_opencv import degrade_opencv
from ray_sr.bench.data_plane import PLACES, PeakMemory, loader_rate, open_batches, rate
from ray_sr.cluster import disconnect, local_ray
from ray_sr.data.crops import CropPlan
from ray_sr.data.manifest import Cutting
from ray_sr.data.pixels import CachedPixels, StoredPixels, read_index
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import BatchStream, choose_place, open_stream
from ray_sr.recipes.reader import parse_recipe

CROP, SCALE, BATCH, CROPS = 96, 4, 16, 4
SIDE = 480


def plain_crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random crop, flipped and turned, as everybody writes it."""
    top, left = (int(rng.integers(side - CROP + 1)) for side in pixels.shape[:2])
    crop = pixels[top : top + CROP, left : left + CROP]
    if rng.integers(2):
        crop = crop[:, ::-1]
    return np.rot90(crop, int(rng.integers(4)))


def plain_pairs(crops: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """LR and HR, uint8 N×3×h×w."""
    hr = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return F.interpolate(hr, size=CROP // SCALE, mode="bicubic", antialias=True), hr


class WholePhotos(Dataset[Any]):
    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Any:
        torch.set_num_threads(1)
        rng = np.random.default_rng(number)
        pixels = np.asarray(Image.open(self.files[number % len(self.files)]).convert("RGB"))
        lr, hr = plain_pairs([plain_crop(pixels, rng)])
        return lr[0], hr[0]


class PngSubImages(Dataset[Any]):
    """An item is a batch: 4 crops of each of 4 sub-images."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Any:
        torch.set_num_threads(1)
        rng = np.random.default_rng(number)
        images = [np.asarray(Image.open(self.files[i])) for i in rng.integers(len(self.files), size=BATCH // CROPS)]
        return plain_pairs([plain_crop(image, rng) for image in images for _ in range(CROPS)])


class OpenCvSecondOrder(Dataset[Any]):
    """An item is a batch of crops of raw sub-images, each degraded by OpenCV."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Any:
        rng = np.random.default_rng(number)
        images = np.load(self.raw, mmap_mode="r")
        picked = rng.integers(len(images), size=BATCH // CROPS)
        hr = np.stack([plain_crop(images[i], rng) for i in picked for _ in range(CROPS)])
        return np.stack([degrade_opencv(crop, SCALE, rng) for crop in hr]), hr


def memory_map_rate(raw: Path, seconds: float, processes: int) -> float:
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(_loop, [(raw, seconds, seed) for seed in range(processes)]))


def _loop(raw: Path, seconds: float, seed: int) -> float:
    torch.set_num_threads(1)
    images, rng = np.load(raw, mmap_mode="r"), np.random.default_rng(seed)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds or not count:
        picked = rng.integers(len(images), size=BATCH // CROPS)
        plain_pairs([plain_crop(images[i], rng) for i in picked for _ in range(CROPS)])
        count += BATCH
        if count == 20 * BATCH and seed >= 0:  # the first batches read the disk
            seed, count, began = -1, 0, time.perf_counter()
    return count / (time.perf_counter() - began)


def write_sub_images(shards: str, folder: Path) -> tuple[list[Path], Path]:
    """The sub-images of the shards as PNG files and as one raw array."""
    index = read_index(shards, "train", SIDE)
    pixels, files = StoredPixels(index), []
    raw = folder / "raw.npy"
    array = np.lib.format.open_memmap(raw, "w+", np.uint8, (len(index), SIDE, SIDE, 3))
    for start in range(0, len(index), 64):
        numbers = range(start, min(start + 64, len(index)))
        for number, image in zip(numbers, pixels.fetch(numbers), strict=True):
            array[number] = image.pixels
            files.append(folder / f"{number:06d}.png")
            Image.fromarray(image.pixels).save(files[-1], compress_level=1)
    array.flush()
    return files, raw


def our_rate(stream: BatchStream, seconds: float, processes: int) -> float:
    return rate(open_batches(stream, processes), BATCH, seconds)


def streams(shards: str) -> dict[str, BatchStream]:
    """Both degradations in both places over the same decoded sub-images, which are all there already."""
    recipes = {
        kind: parse_recipe(
            f"{{name: bench, degradation: [{{kind: {kind}}}], pretrain: {{steps: 1}}, data: {{crop: {CROP}, "
            f"batch: {BATCH}, crops_per_image: {CROPS}, cache: memory}}}}"
        )
        for kind in ("downscale", "second_order")
    }
    opened = open_stream(recipes["downscale"], shards)
    assert isinstance(opened.pixels, CachedPixels)
    ray.wait(list(opened.pixels.refs), num_returns=len(opened.pixels.refs))
    found: dict[str, BatchStream] = {}
    for kind, recipe in recipes.items():
        plan = CropPlan.of(recipe)
        for place in PLACES:
            found[f"{kind} {place}"] = replace(opened, plan=plan, place=place)
        found[f"{kind} auto"] = replace(opened, plan=plan, place=choose_place(plan))
    return found


def run(photos: list[str], rounds: int, seconds: float, processes: int) -> dict[str, Any]:
    local_ray(cpus=processes)
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        shards, root = f"{folder}/shards", Path(folder)
        found = find_photos(photos)
        prepare(found, shards, cutting=Cutting(minimum=SIDE))
        files, raw = write_sub_images(shards, root)
        whole = [Path(photo.uri) for photo in found if min(Image.open(photo.uri).size) >= SIDE]
        ours = streams(shards)
        contestants = {
            "whole photos": lambda: loader_rate(WholePhotos(whole), BATCH, BATCH, seconds, processes),
            "PNG": lambda: loader_rate(PngSubImages(files), None, BATCH, seconds, processes),
            "memory map": lambda: memory_map_rate(raw, seconds, processes),
            "ours": lambda: our_rate(ours["downscale auto"], seconds, processes),
            "ours, by tasks": lambda: our_rate(ours["downscale tasks"], seconds, processes),
            "OpenCV": lambda: loader_rate(OpenCvSecondOrder(raw), None, BATCH, seconds, processes),
            "ours, second order": lambda: our_rate(ours["second_order auto"], seconds, processes),
            "ours, second order in worker": lambda: our_rate(ours["second_order worker"], seconds, processes),
        }
        measured: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds):
            for name, contestant in contestants.items():
                measured[name].append(contestant())
                print(f"round {number + 1}: {name:30} {measured[name][-1]:10,.0f} crops/s", flush=True)
    disconnect()
    return {
        "crops_per_s": {name: statistics.median(values) for name, values in measured.items()},
        "ratios": ratios(measured),
        "rounds": measured,
        "sub_images": len(files),
        "processes": processes,
        "peak_memory": memory.peak,
        "placed": {name: stream.place for name, stream in ours.items() if name.endswith("auto")},
    }


def ratios(measured: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Medians of the ratios within each round, with the targets."""
    pairs = [
        ("ours", "whole photos", 15.0),
        ("ours", "PNG", 2.0),
        ("ours", "memory map", 0.6),
        ("ours, second order", "OpenCV", 1.5),
    ]
    found: dict[str, dict[str, Any]] = {}
    for ours, theirs, target in pairs:
        each = [a / b for a, b in zip(measured[ours], measured[theirs], strict=True)]
        found[f"{ours} / {theirs}"] = {"median": statistics.median(each), "each": each, "target": target}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = run(options.photos, options.rounds, options.seconds, options.processes)
    print(f"\n{'crops/s, median':32}")
    for name, value in result["crops_per_s"].items():
        print(f"  {name:30} {value:10,.0f}")
    for name, ratio in result["ratios"].items():
        print(f"  {name:40} {ratio['median']:6.2f}   target {ratio['target']:g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
