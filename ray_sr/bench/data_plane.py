"""Measures the data plane alone: crops/s of the stream and of its parts, beside a plain torch DataLoader.

All of them make the same crops of the same photographs on the same number of processes or threads.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Generator, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch.utils.data import DataLoader, Dataset

from ray_sr.data.batches import Batch, local_batches, ray_data_batches
from ray_sr.data.crops import CropPlan, SubImage, Visit, make_crops
from ray_sr.data.manifest import Depth, read_photos
from ray_sr.data.pixels import Index, StoredPixels, read_index
from ray_sr.data.sources import PhotoFile, read_photo_bytes
from ray_sr.data.stream import BatchStream, Place, made_up, nanoseconds_per_pixel, open_stream
from ray_sr.errors import InputError
from ray_sr.images import decode, rgb8, rgb16
from ray_sr.recipes.recipe import Recipe

BENCH_ROWS = range(1 << 32)  # more than any measurement takes
MEMORY_SAMPLES_PER_SECOND = 4
PLACES: tuple[Place, ...] = ("tasks", "worker")


def measure(recipe: Recipe, shards: str, seconds: float, processes: int) -> dict[str, Any]:
    """Crops/s of the recipe's stream and of its parts, each measured for about `seconds`; Ray must be running.

    `crops_per_s` is what reaches the training loop, in the place the recipe takes; `tasks` and `worker` are
    both places; `decode_only` and `degrade_only` what the same cores reach when they do nothing else;
    `dataloader` a torch DataLoader that decodes a whole photograph for each crop, None where the photographs
    are gone; `share_of_limit` compares with the slower part that the stream repeats in each epoch.
    """
    index = read_index(shards, "train", recipe.data.crop)
    with PeakMemory() as memory:
        stream = open_stream(recipe, shards)
        rates: dict[str, float] = {
            place: _stream_rate(replace(stream, place=place), seconds, processes) for place in PLACES
        }
    plan = stream.plan
    decode_only = _on_all_cores(_decode_some, (index, plan.crops_per_image), seconds, processes)
    degrade_only = _on_all_cores(_degrade_some, (plan, index.depth), seconds, processes)
    limit = degrade_only if stream.cached else 1 / (1 / decode_only + 1 / degrade_only)
    return {
        "crops_per_s": rates[stream.place],
        "place": stream.place,
        "cached": stream.cached,
        **rates,
        "decode_only": decode_only,
        "degrade_only": degrade_only,
        "share_of_limit": rates[stream.place] / limit,
        "dataloader": whole_photo_rate(shards, plan, index.depth, recipe.data.batch, seconds, processes),
        "nanoseconds_per_pixel": nanoseconds_per_pixel(plan, index.depth),
        "memory": memory.peak,
        "processes": processes,
        "crop": plan.crop,
        "crops_per_image": plan.crops_per_image,
        "sub_images": len(index),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of `measure` for people."""
    whole = figures["dataloader"]
    kept = "kept in memory" if figures["cached"] else "streamed"
    lines = [
        f"{figures['sub_images']} sub-images {kept}, crops of {figures['crop']} px, "
        f"{figures['crops_per_image']} of each, {figures['processes']} processes",
        f"stream        {figures['crops_per_s']:10,.0f} crops/s, made in {figures['place']}, "
        f"{100 * figures['share_of_limit']:.0f} % of the limit",
        *(f"  by {place:<9}{figures[place]:10,.0f} crops/s" for place in PLACES),
        f"decode only   {figures['decode_only']:10,.0f} crops/s",
        f"degrade only  {figures['degrade_only']:10,.0f} crops/s",
        f"DataLoader    {whole:10,.0f} crops/s, decoding a whole photograph for each crop"
        if whole
        else "DataLoader    the photographs are not there any more",
        f"memory        {figures['memory'] / 2**20:10,.0f} MiB at most, all processes",
    ]
    return "\n".join(lines)


def _stream_rate(stream: BatchStream, seconds: float, threads: int) -> float:
    crops = stream.visits * stream.plan.crops_per_image
    return rate(open_batches(stream, threads), crops, seconds)


def open_batches(stream: BatchStream, threads: int) -> Generator[Batch, None, None]:
    """The batches of a stream as a lone training worker would get them."""
    if not stream.by_tasks:
        return local_batches(stream, BENCH_ROWS, threads)
    return ray_data_batches(stream, BENCH_ROWS)


def rate(batches: Iterable[Any], crops: int, seconds: float) -> float:
    """Crops/s of an endless iterator of batches, after as many as are made ahead."""
    batches = iter(batches)
    began = time.perf_counter()
    for _ in islice(batches, 8):
        continue
    warm = time.perf_counter() - began
    for _ in islice(batches, math.ceil(8 * min(1.0, seconds / warm / 2))):
        continue
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count * crops / (time.perf_counter() - began)


def _on_all_cores(work: Any, arguments: tuple[Any, ...], seconds: float, processes: int) -> float:
    task = ray.remote(num_cpus=1)(work)
    shared = [ray.put(argument) for argument in arguments]
    return float(sum(ray.get([task.remote(*shared, seconds, number) for number in range(processes)])))


def _decode_some(index: Index, crops_per_image: int, seconds: float, number: int) -> float:
    """Crops/s that decoding alone allows on one core."""
    pixels = StoredPixels(index)
    order = pixels.order(number, 0)
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        numbers = order[np.arange(count, count + 64) % len(order)]
        count += len(pixels.fetch(numbers.tolist()))
    return count * crops_per_image / (time.perf_counter() - began)


def _degrade_some(plan: CropPlan, depth: Depth, seconds: float, number: int) -> float:
    """Crops/s of cutting and degrading alone on one core."""
    side = max(480, plan.crop) // plan.scale * plan.scale
    images = [made_up(side, plan.scale, depth, number)]
    began, count = time.perf_counter(), 0
    make_crops([Visit(number, 0, side, side)], images, plan)
    began = time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        make_crops([Visit(number, count, side, side)], images, plan)
        count += 1
    return count * plan.crops_per_image / (time.perf_counter() - began)


# ------------------------------------------------------------------------------ the usual trainer's loader


class WholePhotos(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Decodes a whole photograph for each crop, as trainers do that read folders of photographs."""

    def __init__(self, photos: list[PhotoFile], plan: CropPlan, depth: Depth) -> None:
        self.rgb = rgb8 if depth == 8 else rgb16
        self.photos, self.plan = photos, replace(plan, crops_per_image=1)

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.set_num_threads(1)
        epoch, place = divmod(number, len(self.photos))
        pixels = self.rgb(decode(read_photo_bytes(self.photos[place])))
        lr, hr = make_crops([Visit(place, epoch, *pixels.shape[:2])], [SubImage(pixels)], self.plan)
        return torch.from_numpy(lr[0]), torch.from_numpy(hr[0])


def whole_photo_rate(
    shards: str, plan: CropPlan, depth: Depth, batch: int, seconds: float, processes: int
) -> float | None:
    """Crops/s of a DataLoader over the photographs that the shards were made of; None where they are gone."""
    photos = [
        PhotoFile(str(photo["source"]), str(photo["name"]), 0)
        for photo in read_photos(shards)
        if photo["split"] == "train" and not photo["reason"]
    ]
    if plan.paired:
        return None
    try:
        read_photo_bytes(photos[0])
    except (OSError, InputError):
        return None
    return loader_rate(WholePhotos(photos, plan, depth), batch, batch, seconds, processes)


def loader_rate(dataset: Dataset[Any], batch: int | None, crops: int, seconds: float, processes: int) -> float:
    """Crops/s of a DataLoader with `processes` processes and `crops` crops in a batch of `batch` items."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch,
        num_workers=processes,
        prefetch_factor=4,
        multiprocessing_context="spawn",  # Ray's threads do not survive a fork
    )
    return rate(loader, crops, seconds)


# ---------------------------------------------------------------------------------------------- memory


class PeakMemory:
    """The largest memory of this process and all its descendants while the context lasts, in bytes.

    Shared pages are divided among those who share them (PSS), so the object store counts once. Linux only;
    elsewhere `peak` stays 0.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, sum(map(_proportional_bytes, _family())))
            if self._end.wait(1 / MEMORY_SAMPLES_PER_SECOND):
                return


def _family() -> list[int]:
    """Process ids of this process and its descendants, Ray's own included where this process started them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _text(stat).rpartition(")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    family = [os.getpid()]
    for pid in family:
        family.extend(children.get(pid, []))
    return family


def _proportional_bytes(pid: int) -> int:
    for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended
        return ""
