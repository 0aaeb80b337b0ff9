"""What a shard folder holds: manifest.json with totals and shards, photos.parquet with every photo."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.section import Section
from ray_sr.storage import exists, first_line, open_filesystem, read_file, resolve_location, write_file

MANIFEST = "manifest.json"
PHOTOS = "photos.parquet"
SHARD_NAME = re.compile(r"\.?(train|validation)-\d{5}-[0-9a-f]{12}\.parquet(\..*\.tmp)?$")  # and half-written ones

Split = Literal["train", "validation"]
Encoding = Literal["webp", "png", "raw"]
Depth = Literal[8, 16]


class Cutting(Section):
    """How photos become rows of shards."""

    sub_image: int = Field(480, ge=16, description="side of a sub-image in pixels")
    step: int = Field(240, ge=16, description="distance between sub-images in pixels")
    minimum: int = Field(96, ge=8, description="photos with a smaller side are left out")
    depth: Depth = Field(8, description="bits of each channel")
    encoding: Encoding = Field("webp", description="lossless encoding of the pixels: webp, png, raw (zstd)")
    drop_flat: float = Field(
        0.0, ge=0, le=255, description="drop sub-images whose neighbouring pixels differ by less, in grey levels"
    )
    drop_duplicates: bool = Field(False, description="train on sub-images of equal pixels once only")
    input_scale: int = Field(0, ge=0, le=8, description="photo side / input photo side; 0: no input photos")

    @model_validator(mode="before")
    @classmethod
    def _of_depth(cls, given: Any) -> Any:
        """WebP has 8 bits; of the others raw decodes faster, some tenfold at 16 bits, and takes a fifth more."""
        if isinstance(given, dict) and given.get("depth") == 16:
            return {"encoding": "raw", **given}
        return given

    @model_validator(mode="after")
    def _holds_depth(self) -> Self:
        if self.depth == 16 and self.encoding == "webp":
            raise ValueError("encoding webp has 8 bits: take png or raw for depth 16")
        return self

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a depth of 8: shards are named by what is written here, and older versions read them."""
        written: dict[str, Any] = handler(self)
        if self.depth == 8:
            del written["depth"]
        return written

    @model_validator(mode="after")
    def _on_input_pixels(self) -> Self:
        for name in ("sub_image", "step"):
            if self.input_scale and getattr(self, name) % self.input_scale:
                raise ValueError(f"{name} {getattr(self, name)} is no multiple of the scale {self.input_scale}")
        return self


class Shard(Section):
    """One Parquet file of sub-images (train) or whole photos (validation)."""

    file: str
    split: Split
    rows: int
    bytes: int
    pixels: int
    sha256: str


class Manifest(Section):
    """The totals of a shard set; `digest` changes whenever any pixel of it does."""

    format: Literal[1] = 1
    cutting: Cutting
    photos: dict[Split, int]
    left_out: int
    duplicates: int = 0
    shards: list[Shard]

    @property
    def digest(self) -> str:
        return _digest(self.shards)

    def digest_of(self, split: Split) -> str:
        return _digest(self.of_split(split))

    def of_split(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.of_split(split))

    def pixels(self, split: Split) -> int:
        return sum(shard.pixels for shard in self.of_split(split))


PHOTO_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("split", pa.string()),
        ("rows", pa.int32()),
        ("flat", pa.int32()),
        ("reason", pa.string()),
        ("warnings", pa.string()),
    ]
)


def _digest(shards: Sequence[Shard]) -> str:
    return hashlib.sha256(json.dumps([shard.sha256 for shard in shards]).encode()).hexdigest()


def write_manifest(
    filesystem: pafs.FileSystem, folder: str, manifest: Manifest, photos: list[dict[str, object]]
) -> None:
    """Write photos.parquet, then manifest.json: readers take a folder without the latter as unfinished."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(photos, PHOTO_SCHEMA), sink, compression="zstd")
    write_file(filesystem, f"{folder}/{PHOTOS}", sink.getvalue())
    text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False)
    write_file(filesystem, f"{folder}/{MANIFEST}", text.encode())


def shards_of(recipe: Recipe, given: str | None) -> str:
    """Where the shards for a recipe lie: those given, or its own. Raises RecipeError where it names none."""
    place = given or recipe.data.shards
    if place is None:
        raise RecipeError("no data: give --data SHARDS, or data.shards in the recipe")
    return resolve_location(place)


def read_manifest(shards: str) -> Manifest:
    """The manifest of a shard set; InputError where there is none or it is not one."""
    filesystem, folder = open_filesystem(shards)
    path = f"{folder}/{MANIFEST}"
    try:
        text = read_file(filesystem, path)
    except OSError as error:
        may_look = not isinstance(error, PermissionError)
        if may_look and exists(filesystem, folder) and not exists(filesystem, path):
            raise InputError(
                f"{shards}: no {MANIFEST} here: not a shard folder, or `ray-sr data prepare` did not finish"
            ) from None
        raise InputError(f"{shards}: cannot read the shards: {first_line(error)}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: not a manifest of this version: {error.errors()[0]['msg']}") from None


def read_photos(shards: str) -> list[dict[str, object]]:
    """Every photo that `data prepare` saw: source, size, hash, split, or the reason it was left out.

    Raises InputError where that cannot be read.
    """
    filesystem, folder = open_filesystem(shards)
    try:
        return pq.read_table(f"{folder}/{PHOTOS}", filesystem=filesystem).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shards}: cannot read {PHOTOS}: {first_line(error)}") from None
