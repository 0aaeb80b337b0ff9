"""Shards -> an endless, ordered stream of training batches made by Ray Data tasks.

One row of the data set is one worker's batch of one step. Row numbers lead to sub-images through a
shuffled order for each epoch, so the stream has no seam between epochs and can start at any row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from ray_sr.data.crops import CropPlan, Visit, make_crops
from ray_sr.data.encoding import decode_pixels
from ray_sr.data.manifest import Encoding, Manifest, Split, read_manifest
from ray_sr.data.shards import ROWS_IN_GROUP
from ray_sr.errors import InputError, RecipeError
from ray_sr.recipe import Recipe
from ray_sr.storage import first_line, open_filesystem

VISITS_PER_TASK = 64  # a Ray Data task costs some 15-20 ms, a visit a few: enough to hide the former
LARGEST_BLOCK = 32 << 20
MOST_BLOCKS = 20_000  # what the planner of Ray Data handles without delay
WINDOW_GROUPS = 4  # row groups that a task mixes when sub-images are streamed from storage
MEMORY_SHARE = 0.4  # of the object store that decoded sub-images may take


@dataclass(frozen=True, eq=False)
class Index:
    """Where each usable sub-image lies: numbers of shard and row, and its id and size. Arrays of length N."""

    folder: str
    files: tuple[str, ...]
    encoding: Encoding
    shard: np.ndarray
    row: np.ndarray
    id: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


class Pixels(Protocol):
    """Gives decoded sub-images by their number in the index, and an order of an epoch that suits it."""

    def fetch(self, numbers: Sequence[int]) -> list[np.ndarray]: ...

    def order(self, seed: int, epoch: int) -> np.ndarray: ...


def read_index(shards: str, split: Split, minimum: int = 1) -> Index:
    """Index of the sub-images of a split with sides of `minimum` or more, read without their pixels."""
    manifest = read_manifest(shards)
    files = tuple(shard.file for shard in manifest.of_split(split))
    filesystem, folder = open_filesystem(shards)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("shard", "row", "id", "height", "width")}
    for number, file in enumerate(files):
        try:
            table = pq.read_table(f"{folder}/{file}", filesystem=filesystem, columns=["id", "height", "width"])
        except (OSError, ValueError) as error:
            raise InputError(f"{shards}/{file}: damaged or missing shard: {first_line(error)}") from None
        for name in ("id", "height", "width"):
            columns[name].append(table[name].to_numpy())
        columns["shard"].append(np.full(len(table), number, np.int32))
        columns["row"].append(np.arange(len(table), dtype=np.int32))
    joined = {name: np.concatenate(parts) if parts else np.zeros(0, int) for name, parts in columns.items()}
    usable = np.minimum(joined["height"], joined["width"]) >= minimum
    return Index(shards, files, manifest.cutting.encoding, **{k: v[usable] for k, v in joined.items()})


@dataclass(frozen=True)
class StoredPixels:
    """Sub-images decoded anew from the shards each time: memory stays bounded however many there are."""

    index: Index

    def fetch(self, numbers: Sequence[int]) -> list[np.ndarray]:
        wanted: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            group = int(self.index.row[number]) // ROWS_IN_GROUP
            wanted.setdefault((int(self.index.shard[number]), group), []).append(number)
        found: dict[int, np.ndarray] = {}
        for (shard, group), members in wanted.items():
            rows = [int(self.index.row[number]) % ROWS_IN_GROUP for number in members]
            found.update(zip(members, read_rows(self.index, shard, group, rows), strict=True))
        return [found[number] for number in numbers]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row groups shuffled, then rows shuffled within windows of a few groups: each is read about once."""
        return _windowed_order(self.index, seed, epoch)


@dataclass(frozen=True)
class CachedPixels:
    """Sub-images decoded once and kept in the object store."""

    count: int
    chunk: np.ndarray
    place: np.ndarray
    refs: tuple[Any, ...]

    def fetch(self, numbers: Sequence[int]) -> list[np.ndarray]:
        chunks = {int(c): ray.get(self.refs[int(c)]) for c in np.unique(self.chunk[list(numbers)])}
        return [chunks[int(self.chunk[n])][int(self.place[n])] for n in numbers]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(self.count)


@lru_cache(maxsize=8)
def _windowed_order(index: Index, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.default_rng([seed, epoch])
    group = index.shard.astype(np.int64) << 32 | index.row // ROWS_IN_GROUP
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    members = np.split(np.arange(len(index)), starts[1:])
    shuffled = [members[i] for i in generator.permutation(len(members))]
    windows = [np.concatenate(shuffled[i : i + WINDOW_GROUPS]) for i in range(0, len(shuffled), WINDOW_GROUPS)]
    return np.concatenate([generator.permutation(window) for window in windows])


def read_rows(index: Index, shard: int, group: int, rows: Sequence[int]) -> list[np.ndarray]:
    """Decode some rows of a row group. A damaged shard is named in the InputError."""
    filesystem, folder = open_filesystem(index.folder)
    file = index.files[shard]
    try:
        with filesystem.open_input_file(f"{folder}/{file}") as source:
            table = pq.ParquetFile(source).read_row_group(group, columns=["height", "width", "image"])
            picked = table.take(list(rows)).to_pylist()
        return [decode_pixels(r["image"], index.encoding, r["height"], r["width"]) for r in picked]
    except (OSError, ValueError) as error:
        raise InputError(f"{index.folder}/{file}: damaged or missing shard: {first_line(error)}") from None


def open_pixels(index: Index, cache: str) -> Pixels:
    """Where sub-images come from: the object store if they fit (or are told to), else the shards."""
    needed = int(np.dot(index.height.astype(np.int64), index.width)) * 3
    room = MEMORY_SHARE * ray.cluster_resources().get("object_store_memory", 0)
    if cache == "stream" or (cache == "auto" and needed > room):
        return StoredPixels(index)
    if needed > room:
        raise RecipeError(
            f"data.cache memory: the decoded sub-images take {needed >> 20} MiB, the object store has room "
            f"for {int(room) >> 20} MiB: use auto or stream"
        )
    return _decode_all(index)


def _decode_all(index: Index) -> CachedPixels:
    group = index.row // ROWS_IN_GROUP
    key = index.shard.astype(np.int64) << 32 | group
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    chunk = np.cumsum(np.isin(np.arange(len(index)), starts)) - 1
    place = np.arange(len(index)) - starts[chunk]
    decode = ray.remote(num_cpus=1)(read_rows)
    shared = ray.put(index)
    members = np.split(index.row % ROWS_IN_GROUP, starts[1:])
    refs = tuple(
        decode.remote(shared, int(index.shard[start]), int(group[start]), rows.tolist())
        for start, rows in zip(starts, members, strict=True)
    )
    return CachedPixels(len(index), chunk.astype(np.int32), place.astype(np.int32), refs)


@dataclass(frozen=True)
class BatchStream:
    """Makes the batch of any row number. `first_row` is asked anew by each task: a run goes on from there."""

    index: Index
    pixels: Pixels
    plan: CropPlan
    visits: int
    first_row: Callable[[], int]

    def batches(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(LR uint8 R×N×h×w×3, HR uint8 R×N×H×W×3) of these rows, crops of `visits` sub-images in each."""
        lr, hr = make_crops(self._visits(rows), self.plan)
        return lr.reshape(len(rows), -1, *lr.shape[1:]), hr.reshape(len(rows), -1, *hr.shape[1:])

    def _visits(self, rows: Sequence[int]) -> list[Visit]:
        numbers = [row * self.visits + i for row in rows for i in range(self.visits)]
        epochs = [number // len(self.index) for number in numbers]
        orders = {epoch: self.pixels.order(self.plan.seed, epoch) for epoch in set(epochs)}
        chosen = [
            int(orders[epoch][number % len(self.index)]) for epoch, number in zip(epochs, numbers, strict=True)
        ]
        pixels = self.pixels.fetch(chosen)
        return [
            Visit(image, int(self.index.id[at]), epoch)
            for image, at, epoch in zip(pixels, chosen, epochs, strict=True)
        ]


def batch_dataset(stream: BatchStream, rows: int) -> Dataset:
    """Ray Data set of `rows` rows: row (int64), lr (uint8 N×h×w×3), hr (uint8 N×H×W×3), in their order."""
    hr_bytes = stream.visits * stream.plan.crops_per_image * stream.plan.crop**2 * 3
    per_block = max(1, min(VISITS_PER_TASK // stream.visits, LARGEST_BLOCK // hr_bytes))
    blocks = math.ceil(rows / max(per_block, math.ceil(rows / MOST_BLOCKS)))
    numbered = ray.data.range(rows, override_num_blocks=blocks)
    return numbered.map_batches(partial(_make_rows, stream=stream), batch_size=None, num_cpus=1)


def _make_rows(block: dict[str, np.ndarray], *, stream: BatchStream) -> dict[str, np.ndarray]:
    rows = (block["id"] + stream.first_row()).astype(np.int64)
    lr, hr = stream.batches(rows.tolist())
    return {"row": rows, "lr": lr, "hr": hr}


def open_stream(recipe: Recipe, shards: str, first_row: Callable[[], int]) -> BatchStream:
    """The training stream of a recipe over a shard set; Ray must be running."""
    index = read_index(shards, "train", recipe.data.crop)
    if not len(index):
        raise RecipeError(
            f"data.crop {recipe.data.crop}: no sub-image in {shards} is that large: use a smaller crop"
        )
    visits = recipe.data.batch // recipe.training.workers // recipe.data.crops_per_image
    return BatchStream(index, open_pixels(index, recipe.data.cache), CropPlan.of(recipe), visits, first_row)


def validation_photos(shards: str, limit: int) -> list[tuple[str, np.ndarray]]:
    """(name, uint8 H×W×3) of the held-out photos, at most `limit`, in the order of their names."""
    manifest: Manifest = read_manifest(shards)
    filesystem, folder = open_filesystem(shards)
    photos: list[tuple[str, np.ndarray]] = []
    for shard in manifest.of_split("validation"):
        with filesystem.open_input_file(f"{folder}/{shard.file}") as source:
            table = pq.ParquetFile(source)
            for group in range(table.num_row_groups):
                if len(photos) >= limit:
                    return photos
                for row in table.read_row_group(group).to_pylist():
                    pixels = decode_pixels(row["image"], manifest.cutting.encoding, row["height"], row["width"])
                    photos.append((row["photo"], pixels))
    return photos[:limit]
