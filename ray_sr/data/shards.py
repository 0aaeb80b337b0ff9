"""Photographs -> shards: Ray Data tasks check photos, cut sub-images and write Parquet files.

Each task writes one shard from its own group of photos, under a temporary name that is renamed when it
is whole, so a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ray_sr.data.encoding import encode_pixels
from ray_sr.data.manifest import Cutting, Manifest, Shard, Split, write_manifest
from ray_sr.data.sources import PhotoFile
from ray_sr.errors import InputError, ResourceError
from ray_sr.images import Limits, PhotoError, decode, rgb8
from ray_sr.storage import (
    first_line,
    make_folder,
    open_filesystem,
    read_file,
    remove_quietly,
    temporary_name,
)

ROWS_IN_GROUP = 16  # rows of a Parquet row group: what a reader decodes together
GROUP_BYTES = 32 << 20  # photo files of one shard; sub-images overlap, so shards come out at 64-160 MB
MINIMUM_GROUP_BYTES = 1 << 20
OURS = re.compile(r"\.?(train|validation)-\d{5}-[0-9a-f]{12}\.parquet(\..*\.tmp)?$")
PHOTO_LIMITS = Limits(max_bytes=1 << 30, max_pixels=1 << 29, strict=True)

SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("photo", pa.string()),
        ("top", pa.int32()),
        ("left", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Group:
    """The photos of one shard."""

    shard: str
    split: Split
    photos: tuple[PhotoFile, ...]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made: the manifest and a record of every photo."""

    manifest: Manifest
    photos: list[dict[str, Any]]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        return [photo for photo in self.photos if photo["reason"]]


def prepare(
    photos: Sequence[PhotoFile],
    output: str,
    *,
    cutting: Cutting | None = None,
    validation: float = 0.05,
    hold_out: Sequence[str] = (),
    progress: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Prepared:
    """Cut photos into shards under `output`; Ray must be running.

    `validation` is the share of photos held out (at most 100, at least 1 of 2), chosen by the hash of
    their names; `hold_out` names further ones. `progress` is called with each photo's record.
    Raises InputError where no photo can be used and ResourceError where `output` cannot be written.
    """
    cutting = cutting or Cutting()
    filesystem, folder = open_filesystem(output)
    make_folder(filesystem, folder)
    groups = _groups(photos, _split(photos, validation, hold_out), cutting)
    records: list[dict[str, Any]] = []
    shards: list[Shard] = []
    for shard, photo_records in _write_all(groups, output, cutting):
        records.extend(photo_records)
        if shard.rows:
            shards.append(shard)
        for record in photo_records:
            progress(record)
    kept = [record for record in records if not record["reason"]]
    if not any(record["split"] == "train" for record in kept):
        reasons = "; ".join(f"{record['name']}: {record['reason']}" for record in records[:3])
        raise InputError(f"none of the {len(records)} photos can be trained on ({reasons})")
    manifest = Manifest(
        cutting=cutting,
        photos={split: sum(r["split"] == split for r in kept) for split in ("train", "validation")},
        left_out=len(records) - len(kept),
        shards=sorted(shards, key=lambda shard: shard.file),
    )
    records.sort(key=lambda record: (record["name"], record["source"]))
    write_manifest(filesystem, folder, manifest, records)
    _remove_strays(filesystem, folder, keep={group.shard for group in groups})
    return Prepared(manifest, records)


def _split(photos: Sequence[PhotoFile], share: float, hold_out: Sequence[str]) -> set[str]:
    """URIs of the held-out photos."""
    named = {photo.uri for photo in photos if photo.name in hold_out or photo.uri in hold_out}
    for name in hold_out:
        if not any(name in (photo.name, photo.uri) for photo in photos):
            raise InputError(f"--hold-out {name}: no such photo among the {len(photos)} given")
    wanted = min(100, max(round(share * len(photos)), 1)) if share > 0 and len(photos) > 1 else 0
    by_hash = sorted(photos, key=lambda photo: hashlib.sha256(photo.name.encode()).digest())
    return named or {photo.uri for photo in by_hash[:wanted]}


def _groups(photos: Sequence[PhotoFile], held_out: set[str], cutting: Cutting) -> list[Group]:
    """Photos packed into shards by file size: the same photos and cutting give the same groups."""
    total = sum(photo.size for photo in photos)
    target = min(GROUP_BYTES, max(MINIMUM_GROUP_BYTES, total // 16))
    groups: list[Group] = []
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        members = [photo for photo in photos if (photo.uri in held_out) == (split == "validation")]
        for index, packed in enumerate(_pack(members, target)):
            described = json.dumps([cutting.model_dump(), [(photo.uri, photo.size) for photo in packed]])
            digest = hashlib.sha256(described.encode()).hexdigest()[:12]
            groups.append(Group(f"{split}-{index:05d}-{digest}.parquet", split, tuple(packed)))
    return groups


def _pack(photos: Sequence[PhotoFile], target: int) -> Iterator[list[PhotoFile]]:
    packed: list[PhotoFile] = []
    size = 0
    for photo in photos:
        packed.append(photo)
        size += photo.size
        if size >= target:
            yield packed
            packed, size = [], 0
    if packed:
        yield packed


def _write_all(
    groups: Sequence[Group], output: str, cutting: Cutting
) -> Iterator[tuple[Shard, list[dict[str, Any]]]]:
    import ray

    rows = [{"group": json.dumps(asdict(group))} for group in groups]
    task = partial(_write_shard_row, output=output, cutting=cutting)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(task, num_cpus=1)
    for row in dataset.iter_rows():
        if row["error"]:
            raise ResourceError(row["error"])
        yield Shard.model_validate_json(row["shard"]), json.loads(row["photos"])


def _write_shard_row(row: dict[str, Any], *, output: str, cutting: Cutting) -> dict[str, Any]:
    """The Ray Data task: one group of photos in, one shard on storage and its records out."""
    described = json.loads(row["group"])
    photos = tuple(PhotoFile(**photo) for photo in described["photos"])
    group = Group(described["shard"], described["split"], photos)
    try:
        shard, records = write_shard(group, output, cutting)
    except ResourceError as error:
        return {"shard": "", "photos": "", "error": str(error)}
    return {"shard": shard.model_dump_json(), "photos": json.dumps(records), "error": ""}


def write_shard(group: Group, output: str, cutting: Cutting) -> tuple[Shard, list[dict[str, Any]]]:
    """Write the shard of a group unless it is there already. Returns it and a record of each photo."""
    filesystem, folder = open_filesystem(output)
    path = f"{folder}/{group.shard}"
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        aside = temporary_name(path)
        try:
            _write_parquet(filesystem, aside, group, cutting)
            filesystem.move(aside, path)
        except (OSError, pa.ArrowException) as error:
            remove_quietly(filesystem, aside)
            raise ResourceError(f"{path}: cannot write this shard: {first_line(error)}") from None
    return _describe(filesystem, path, group)


def _write_parquet(filesystem: pafs.FileSystem, path: str, group: Group, cutting: Cutting) -> None:
    records: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, SHARD_SCHEMA, filesystem=filesystem, compression="none") as writer:
        for photo in group.photos:
            record, rows = _read_and_cut(photo, group.split, cutting)
            records.append(record)
            waiting.extend(rows)
            while len(waiting) >= ROWS_IN_GROUP:
                writer.write_table(pa.Table.from_pylist(waiting[:ROWS_IN_GROUP], SHARD_SCHEMA))
                del waiting[:ROWS_IN_GROUP]
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, SHARD_SCHEMA))
        writer.add_key_value_metadata({"ray_sr.photos": json.dumps(records), "ray_sr.encoding": cutting.encoding})


def _describe(filesystem: pafs.FileSystem, path: str, group: Group) -> tuple[Shard, list[dict[str, Any]]]:
    data = read_file(filesystem, path)
    table = pq.ParquetFile(io.BytesIO(data))
    sizes = table.read(columns=["height", "width"])
    pixels = int(np.dot(sizes["height"].to_numpy().astype(np.int64), sizes["width"].to_numpy()))
    shard = Shard(
        file=group.shard,
        split=group.split,
        rows=table.metadata.num_rows,
        bytes=len(data),
        pixels=pixels,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return shard, json.loads(table.metadata.metadata[b"ray_sr.photos"])


def _read_and_cut(photo: PhotoFile, split: Split, cutting: Cutting) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A record of this photo, and its rows: none where it cannot be used."""
    record: dict[str, Any] = {
        "source": photo.uri,
        "name": photo.name,
        "bytes": photo.size,
        "sha256": "",
        "height": 0,
        "width": 0,
        "split": split,
        "rows": 0,
        "reason": "",
        "warnings": "",
    }
    try:
        data = read_file(*open_filesystem(photo.uri))
        record["sha256"] = hashlib.sha256(data).hexdigest()
        decoded = decode(data, PHOTO_LIMITS)
    except (PhotoError, OSError) as error:
        record["reason"] = first_line(error)
        return record, []
    pixels = rgb8(decoded)
    height, width = pixels.shape[:2]
    record.update(height=height, width=width, warnings=", ".join(decoded.warnings))
    if min(height, width) < cutting.minimum:
        record["reason"] = f"too small: {width}x{height}, the smaller side must be {cutting.minimum} or more"
        return record, []
    boxes = [(0, 0, height, width)] if split == "validation" else list(sub_images(height, width, cutting))
    rows = [_row(photo.name, record["sha256"], pixels, box, cutting) for box in boxes]
    record["rows"] = len(rows)
    return record, rows


def _row(
    name: str, sha256: str, pixels: np.ndarray, box: tuple[int, int, int, int], cutting: Cutting
) -> dict[str, Any]:
    top, left, height, width = box
    key = hashlib.sha256(f"{sha256} {box}".encode()).digest()
    cut = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    return {
        "id": int.from_bytes(key[:8], "big", signed=True),
        "photo": name,
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "image": encode_pixels(cut, cutting.encoding),
    }


def sub_images(height: int, width: int, cutting: Cutting) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of each sub-image; the last ones touch the far edges, so nothing is lost."""
    for top in _starts(height, cutting):
        for left in _starts(width, cutting):
            yield top, left, min(cutting.sub_image, height), min(cutting.sub_image, width)


def _starts(side: int, cutting: Cutting) -> list[int]:
    last = max(side - cutting.sub_image, 0)
    starts = list(range(0, last + 1, cutting.step))
    return starts if starts[-1] == last else [*starts, last]


def _remove_strays(filesystem: pafs.FileSystem, folder: str, keep: set[str]) -> None:
    """Remove shards of earlier cuttings and half-written ones of killed tasks: only names of our own."""
    for info in filesystem.get_file_info(pafs.FileSelector(folder)):
        if OURS.fullmatch(info.base_name) and info.base_name not in keep:
            remove_quietly(filesystem, info.path)
