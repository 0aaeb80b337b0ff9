"""Photographs -> shards: Ray Data tasks check photos, cut sub-images and write Parquet files.

Each task writes one shard from its own group of photos, under a temporary name that is renamed when it
is whole, so a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ray_sr.cluster import require_shared
from ray_sr.data.held_out import HeldOutPhotos, choose_held_out
from ray_sr.data.manifest import SHARD_NAME, Cutting, Manifest, Shard, Split, write_manifest
from ray_sr.data.pairs import match_pairs
from ray_sr.data.sources import PhotoFile, read_photo_bytes
from ray_sr.data.sub_images import (
    PHOTO_LIMITS,
    SHARD_SCHEMA,
    Record,
    file_digest,
    read_and_cut,
    stamp_of,
    stored_bytes,
)
from ray_sr.errors import InputError, ResourceError
from ray_sr.images import PhotoError, decode
from ray_sr.storage import (
    first_line,
    make_folder,
    open_filesystem,
    read_file,
    remove_quietly,
    temporary_name,
    write_file,
)

ROWS_IN_GROUP = 16  # rows of a Parquet row group: what a reader decodes together
SHARD_BYTES = 128 << 20  # what a shard is expected to take; estimates are off by less than a factor of two
MINIMUM_GROUP_BYTES = 1 << 20  # photo files of one shard, at least, where a small set is shared among tasks
LEAST_SHARDS = 8
PROBED_PHOTOS = 16


@dataclass(frozen=True)
class Group:
    """The photos of one shard. `held_out`: pixels of photos to validate on, which are not trained on."""

    shard: str
    split: Split
    photos: tuple[PhotoFile, ...]
    held_out: dict[str, str] = field(default_factory=dict)


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
    inputs: str | None = None,
    progress: Callable[[Record], None] = lambda record: None,
) -> Prepared:
    """Cut photos into shards under `output`; Ray must be running.

    `validation` is the share of photos held out (at most 100, at least 1 of 2), chosen by the hash of
    their names among those that can be used; `hold_out` names them instead. A copy of a held-out photo is not
    trained on. `inputs` is a folder with the input photo of each photo, of
    the same name and 1 / `cutting.input_scale` of its size. `progress` is called with each photo's record.
    Raises InputError where no photo can be used and ResourceError where `output` cannot be written.
    """
    cutting = cutting or Cutting()
    filesystem, folder = open_filesystem(output)
    make_folder(filesystem, folder)
    if inputs is not None:
        photos = _with_partners(photos, inputs, cutting.input_scale)
    _require_shared_folder(output, photos)
    groups = _groups(photos, choose_held_out(photos, validation, hold_out, cutting), cutting)
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
        duplicates=_duplicates(output, shards) if cutting.drop_duplicates else 0,
        shards=sorted(shards, key=lambda shard: shard.file),
    )
    records.sort(key=lambda record: (record["name"], record["source"]))
    write_manifest(filesystem, folder, manifest, records)
    _remove_strays(filesystem, folder, keep={group.shard for group in groups})
    return Prepared(manifest, records)


def _require_shared_folder(output: str, photos: Sequence[PhotoFile]) -> None:
    """Whether all nodes see the same folder, by a file that is there for the time of asking."""
    filesystem, folder = open_filesystem(output)
    mark = temporary_name(f"{folder}/shared")
    write_file(filesystem, mark, b"")
    try:
        require_shared(output if "://" in output else mark, *[photo.uri.partition("#")[0] for photo in photos[:1]])
    finally:
        remove_quietly(filesystem, mark)


def _with_partners(photos: Sequence[PhotoFile], inputs: str, scale: int) -> list[PhotoFile]:
    """The photos with their input photos; those that have none will be named in the manifest.

    Raises InputError where several photos have one name, as those of two folders may: each would get the same.
    """
    twice = [
        name for name, times in Counter(str(PurePath(p.name).with_suffix("")) for p in photos).items() if times > 1
    ]
    if twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise InputError(
            f"several photos are called {twice[0]}{more}: which input photo is whose cannot be told: "
            "give one folder, whose folders --inputs has too, or rename them"
        )
    pairs, _ = match_pairs(photos, inputs, scale)
    partner = {pair.hr.uri: pair.lr for pair in pairs}
    return [replace(photo, partner=partner.get(photo.uri)) for photo in photos]


def _duplicates(output: str, shards: Sequence[Shard]) -> int:
    """How many sub-images to train on have the pixels of an earlier one."""
    filesystem, folder = open_filesystem(output)
    files = [f"{folder}/{shard.file}" for shard in shards if shard.split == "train"]
    tables = [pq.read_table(file, filesystem=filesystem, columns=["content"]) for file in files]
    content = pa.concat_tables(tables)["content"].to_numpy()
    return len(content) - len(np.unique(content))


def _groups(photos: Sequence[PhotoFile], held_out: HeldOutPhotos, cutting: Cutting) -> list[Group]:
    """Photos packed into shards by file size: the same photos and cutting give the same groups."""
    target = _group_bytes(photos, cutting)
    groups: list[Group] = []
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        members = [photo for photo in photos if (photo.uri in held_out.uris) == (split == "validation")]
        barred = held_out.pixels if split == "train" else {}
        for index, packed in enumerate(_pack(members, target)):
            described = json.dumps([cutting.model_dump(), [_described(photo) for photo in packed], barred])
            digest = hashlib.sha256(described.encode()).hexdigest()[:12]
            groups.append(Group(f"{split}-{index:05d}-{digest}.parquet", split, tuple(packed), barred))
    return groups


def _described(photo: PhotoFile) -> dict[str, Any]:
    """What a photo is called, without its stamps: whether it has changed since is asked of the shard itself."""
    partner = photo.partner and asdict(replace(photo.partner, stamp=""))
    return {**asdict(replace(photo, stamp="", partner=None)), "partner": partner}


def _group_bytes(photos: Sequence[PhotoFile], cutting: Cutting) -> int:
    """How many bytes of photo files make a shard of `SHARD_BYTES`, judged by some of them.

    A JPEG grows tenfold, a PNG twofold. Small sets make smaller shards, so that all CPUs have something to do.
    """
    stored = files = 0
    for photo in photos[:: max(1, len(photos) // PROBED_PHOTOS)]:
        try:
            found = decode(read_photo_bytes(photo), PHOTO_LIMITS)
        except (PhotoError, OSError, pa.ArrowException):
            continue  # it is named when its turn comes
        stored += stored_bytes(found.height, found.width, cutting)
        files += photo.size
    wanted = int(SHARD_BYTES * files / stored) if stored and files else SHARD_BYTES
    total = sum(photo.size for photo in photos)
    return min(wanted, max(MINIMUM_GROUP_BYTES, total // LEAST_SHARDS))


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
    photos = tuple(_photo_file(photo) for photo in described["photos"])
    group = Group(described["shard"], described["split"], photos, described["held_out"])
    try:
        shard, records = write_shard(group, output, cutting)
    except ResourceError as error:
        return {"shard": "", "photos": "", "error": str(error)}
    return {"shard": shard.model_dump_json(), "photos": json.dumps(records), "error": ""}


def _photo_file(fields: dict[str, Any]) -> PhotoFile:
    partner = fields["partner"]
    return PhotoFile(**{**fields, "partner": partner and PhotoFile(**partner)})


def write_shard(group: Group, output: str, cutting: Cutting) -> tuple[Shard, list[dict[str, Any]]]:
    """Write the shard of a group unless it is there already, of the same photos.

    Returns it and a record of each photo.
    """
    filesystem, folder = open_filesystem(output)
    path = f"{folder}/{group.shard}"
    if filesystem.get_file_info(path).type != pafs.FileType.File or _has_changed(filesystem, path, group):
        aside = temporary_name(path)
        try:
            _write_parquet(filesystem, aside, group, cutting)
            filesystem.move(aside, path)
        except (OSError, pa.ArrowException) as error:
            remove_quietly(filesystem, aside)
            raise ResourceError(f"{path}: cannot write this shard: {first_line(error)}") from None
    return _describe(filesystem, path, group)


def _has_changed(filesystem: pafs.FileSystem, path: str, group: Group) -> bool:
    """Whether a photo of this shard has other bytes since; asked of its stamp first."""
    try:
        with filesystem.open_input_file(path) as file:
            records = json.loads(pq.ParquetFile(file).metadata.metadata[b"ray_sr.photos"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return True
    for photo, record in zip(group.photos, records, strict=True):
        if record.get("stamp") == stamp_of(photo):
            continue
        try:
            if file_digest(photo) != record["sha256"]:
                return True
        except (OSError, pa.ArrowException):
            return True
    return False


def _write_parquet(filesystem: pafs.FileSystem, path: str, group: Group, cutting: Cutting) -> None:
    records: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(
        path, SHARD_SCHEMA, filesystem=filesystem, compression="none", write_page_checksum=True
    ) as writer:
        for photo in group.photos:
            record, rows = read_and_cut(photo, group.split, cutting, group.held_out)
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


def damage_of(shards: str, shard: Shard) -> str:
    """What is wrong with a shard whose bytes are not those that the manifest names; empty where nothing is."""
    filesystem, folder = open_filesystem(shards)
    try:
        data = read_file(filesystem, f"{folder}/{shard.file}")
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {first_line(error)}"
    if len(data) != shard.bytes:
        return f"{len(data)} bytes, the manifest says {shard.bytes}"
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return "its SHA-256 differs from the manifest's"
    return ""


def _remove_strays(filesystem: pafs.FileSystem, folder: str, keep: set[str]) -> None:
    """Remove shards of earlier cuttings and half-written ones of killed tasks: only names of our own."""
    for info in filesystem.get_file_info(pafs.FileSelector(folder)):
        if SHARD_NAME.fullmatch(info.base_name) and info.base_name not in keep:
            remove_quietly(filesystem, info.path)
