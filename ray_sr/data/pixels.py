"""Decoded sub-images by their number: from the object store if they fit there, else from the shards."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ray_sr.cluster import is_one_node
from ray_sr.data.crops import SubImage, Visit
from ray_sr.data.encoding import decode_pixels
from ray_sr.data.manifest import Depth, Encoding, Manifest, Shard, Split, read_manifest
from ray_sr.data.shards import ROWS_IN_GROUP, damage_of
from ray_sr.errors import InputError, RecipeError
from ray_sr.storage import first_line, open_filesystem, read_file

WINDOW_GROUPS = 4  # row groups that are mixed when sub-images are streamed from storage
MEMORY_SHARE = 0.4  # of the object store that decoded sub-images may take
HELD_CHUNKS = 32  # of other nodes' chunks that a process keeps at hand


@dataclass(frozen=True, eq=False)
class Index:
    """Where each usable sub-image lies: numbers of shard and row, and its id and size. Arrays of length N.

    `skipped` tells of shards that were left out: file name -> what is wrong with it.
    """

    folder: str
    files: tuple[str, ...]
    encoding: Encoding
    shard: np.ndarray
    row: np.ndarray
    id: np.ndarray
    height: np.ndarray
    width: np.ndarray
    input_scale: int = 0
    depth: Depth = 8
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def bytes(self) -> int:
        """What all sub-images take when decoded."""
        sharp = 3 * self.depth // 8 * int(np.dot(self.height.astype(np.int64), self.width))
        return sharp + (sharp // self.input_scale**2 if self.input_scale else 0)

    def visit(self, number: int, epoch: int) -> Visit:
        return Visit(int(self.id[number]), epoch, int(self.height[number]), int(self.width[number]))


class Pixels(Protocol):
    """Gives decoded sub-images by their number in the index, and an order of an epoch that suits it."""

    def fetch(self, numbers: Sequence[int]) -> list[SubImage]: ...

    def order(self, seed: int, epoch: int) -> np.ndarray: ...


def read_index(shards: str, split: Split, minimum: int = 1, *, skip_damaged: bool = False) -> Index:
    """Index of the sub-images of a split with sides of `minimum` or more, read without their pixels.

    Raises InputError with the name of a shard that is damaged or missing. With `skip_damaged` every shard is
    compared with the manifest first, by Ray tasks, and those that differ are left out.
    """
    manifest = read_manifest(shards)
    skipped = _damaged(shards, manifest, split) if skip_damaged else {}
    files = tuple(shard.file for shard in manifest.of_split(split) if shard.file not in skipped)
    filesystem, folder = open_filesystem(shards)
    names = ("id", "height", "width", "content")
    parts = []
    for number, file in enumerate(files):
        try:
            table = pq.read_table(f"{folder}/{file}", filesystem=filesystem, columns=list(names))
        except (OSError, ValueError) as error:
            raise _damage(shards, file, error) from None
        columns = [table[name].to_numpy() for name in names]
        parts.append([np.full(len(table), number, np.int32), np.arange(len(table), dtype=np.int32), *columns])
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, int)] * 6
    *kept, content = joined
    usable = np.minimum(kept[3], kept[4]) >= minimum
    if manifest.cutting.drop_duplicates:
        usable &= _first_of_each(content)
    arrays = dict(zip(("shard", "row", "id", "height", "width"), (a[usable] for a in kept), strict=True))
    how = manifest.cutting
    return Index(
        shards, files, how.encoding, **arrays, input_scale=how.input_scale, depth=how.depth, skipped=skipped
    )


def _damaged(shards: str, manifest: Manifest, split: Split) -> dict[str, str]:
    checked = manifest.of_split(split)
    check = ray.remote(num_cpus=1)(damage_of)
    reasons = ray.get([check.remote(shards, shard) for shard in checked])
    return {shard.file: reason for shard, reason in zip(checked, reasons, strict=True) if reason}


def _first_of_each(content: np.ndarray) -> np.ndarray:
    first = np.zeros(len(content), bool)
    first[np.unique(content, return_index=True)[1]] = True
    return first


def _damage(shards: str, file: str, error: Exception) -> InputError:
    return InputError(
        f"{shards}/{file}: damaged or missing shard: {first_line(error)}; make it again with `ray-sr data "
        "prepare`, or train without it: data.damaged=skip"
    )


@dataclass(frozen=True)
class StoredPixels:
    """Sub-images decoded anew from the shards each time: memory stays bounded however many there are."""

    index: Index

    def fetch(self, numbers: Sequence[int]) -> list[SubImage]:
        wanted: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            group = int(self.index.row[number]) // ROWS_IN_GROUP
            wanted.setdefault((int(self.index.shard[number]), group), []).append(number)
        found: dict[int, SubImage] = {}
        for (shard, group), members in wanted.items():
            rows = [int(self.index.row[number]) % ROWS_IN_GROUP for number in members]
            found.update(zip(members, read_rows(self.index, shard, group, rows), strict=True))
        return [found[number] for number in numbers]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row groups shuffled, then rows shuffled within windows of a few groups: each is read about once."""
        return _windowed_order(self.index, seed, epoch)


@dataclass(frozen=True, eq=False)
class CachedPixels:
    """Sub-images decoded once and kept in the object store; `held` chunks of them at hand in each process."""

    count: int
    chunk: np.ndarray
    place: np.ndarray
    refs: tuple[Any, ...]
    held: int
    _chunks: OrderedDict[int, list[SubImage]] = field(default_factory=OrderedDict)

    def fetch(self, numbers: Sequence[int]) -> list[SubImage]:
        """Views of the object store's memory, without a copy."""
        return [self._at_hand(int(self.chunk[number]))[int(self.place[number])] for number in numbers]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return _random_order(self.count, seed, epoch)

    def _at_hand(self, chunk: int) -> list[SubImage]:
        images = self._chunks.get(chunk)
        if images is None:
            images = self._chunks[chunk] = ray.get(self.refs[chunk])
            if len(self._chunks) > self.held:
                self._chunks.popitem(last=False)
        return images

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedPixels, (self.count, self.chunk, self.place, self.refs, self.held)


@lru_cache(maxsize=8)
def _random_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@lru_cache(maxsize=8)
def _windowed_order(index: Index, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.default_rng([seed, epoch])
    members = np.split(np.arange(len(index)), _group_starts(index)[1:])
    shuffled = [members[i] for i in generator.permutation(len(members))]
    windows = [np.concatenate(shuffled[i : i + WINDOW_GROUPS]) for i in range(0, len(shuffled), WINDOW_GROUPS)]
    return np.concatenate([generator.permutation(window) for window in windows])


def _group_starts(index: Index) -> np.ndarray:
    """The number of the first sub-image of each row group."""
    group = index.shard.astype(np.int64) << 32 | index.row // ROWS_IN_GROUP
    return np.flatnonzero(np.r_[True, group[1:] != group[:-1]])


def read_rows(index: Index, shard: int, group: int, rows: Sequence[int]) -> list[SubImage]:
    """Decode some rows of a row group. A damaged shard is named in the InputError."""
    filesystem, folder = open_filesystem(index.folder)
    file = index.files[shard]
    columns = ["height", "width", "image", *(["input"] if index.input_scale else [])]
    try:
        with filesystem.open_input_file(f"{folder}/{file}") as source:
            table = pq.ParquetFile(source, page_checksum_verification=True).read_row_group(group, columns=columns)
            picked = table.take(list(rows)).to_pylist()
        return [_decode(row, index.encoding, index.depth, index.input_scale) for row in picked]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damage(index.folder, file, error) from None


def _decode(row: dict[str, Any], encoding: Encoding, depth: Depth, input_scale: int) -> SubImage:
    height, width = row["height"], row["width"]
    pixels = decode_pixels(row["image"], encoding, height, width, depth)
    if not input_scale:
        return SubImage(pixels)
    small = height // input_scale, width // input_scale
    return SubImage(pixels, decode_pixels(row["input"], encoding, *small, depth))


def open_pixels(index: Index, cache: str) -> Pixels:
    """Where sub-images come from: the object store if they fit (or are told to), else the shards."""
    room = MEMORY_SHARE * ray.cluster_resources().get("object_store_memory", 0)
    if cache == "stream" or (cache == "auto" and index.bytes > room):
        return StoredPixels(index)
    if index.bytes > room:
        raise RecipeError(
            f"data.cache memory: the decoded sub-images take {index.bytes >> 20} MiB, the object store has room "
            f"for {int(room) >> 20} MiB: use auto or stream"
        )
    return _decode_all(index)


def _decode_all(index: Index) -> CachedPixels:
    starts = _group_starts(index)
    chunk = np.zeros(len(index), np.int32)
    chunk[starts[1:]] = 1
    chunk = chunk.cumsum(dtype=np.int32)
    place = np.arange(len(index)) - starts[chunk]
    decode = ray.remote(num_cpus=1)(read_rows)
    shared = ray.put(index)
    members = np.split(index.row, starts[1:])
    refs = tuple(
        decode.remote(
            shared, int(index.shard[start]), int(rows[0]) // ROWS_IN_GROUP, (rows % ROWS_IN_GROUP).tolist()
        )
        for start, rows in zip(starts, members, strict=True)
    )
    held = len(refs) if is_one_node() else HELD_CHUNKS
    return CachedPixels(len(index), chunk, place.astype(np.int32), refs, held)


@dataclass(frozen=True)
class HeldOut:
    """A whole held-out photo: uint8 or uint16 H×W×3, and its input photo H/scale×W/scale×3 where it has one."""

    name: str
    pixels: np.ndarray
    inputs: np.ndarray | None = None


def validation_photos(shards: str, limit: int) -> list[HeldOut]:
    """The held-out photos, at most `limit`, in the order of their names."""
    manifest = read_manifest(shards)
    photos: list[HeldOut] = []
    for shard in manifest.of_split("validation"):
        if len(photos) >= limit:
            break
        photos.extend(_whole_photos(shards, manifest, shard, limit - len(photos)))
    return photos


def _whole_photos(shards: str, manifest: Manifest, shard: Shard, limit: int) -> list[HeldOut]:
    filesystem, folder = open_filesystem(shards)
    cutting, photos = manifest.cutting, []
    try:
        data = read_file(filesystem, f"{folder}/{shard.file}")
        for batch in pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).iter_batches(batch_size=1):
            (row,) = batch.to_pylist()
            image = _decode(row, cutting.encoding, cutting.depth, cutting.input_scale)
            photos.append(HeldOut(row["photo"], image.pixels, image.inputs))
            if len(photos) == limit:
                break
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damage(shards, shard.file, error) from None
    return photos
