"""Looks at shards and recipes: damage, counts, and what a degradation does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_sr.data.manifest import Manifest, read_manifest, read_photos
from ray_sr.data.shards import damage_of
from ray_sr.data.sources import find_photos
from ray_sr.degradations.preview import contact_sheet
from ray_sr.images import Photo, read_photo, rgb8, write_photo
from ray_sr.recipe import Recipe

PREVIEW_PHOTOS = 6


def damaged_shards(shards: str, manifest: Manifest) -> dict[str, str]:
    """File name -> reason, for every shard whose bytes are not those that the manifest names."""
    reasons = {shard.file: damage_of(shards, shard) for shard in manifest.shards}
    return {file: reason for file, reason in reasons.items() if reason}


def describe(shards: str) -> tuple[dict[str, Any], str]:
    """Counts, sizes and split of a shard set, as facts and as text."""
    manifest, photos = read_manifest(shards), read_photos(shards)
    kept = [photo for photo in photos if not photo["reason"]]
    sides = np.array([[photo["width"], photo["height"]] for photo in kept])
    facts = {
        "photos": manifest.photos,
        "left_out": {photo["name"]: photo["reason"] for photo in photos if photo["reason"]},
        "sub_images": manifest.rows("train"),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "megapixels": sum(shard.pixels for shard in manifest.shards) / 1e6,
        "smallest": sides[sides.prod(1).argmin()].tolist(),
        "largest": sides[sides.prod(1).argmax()].tolist(),
        "cutting": manifest.cutting.model_dump(),
        "digest": manifest.digest,
    }
    lines = [
        f"photos      {manifest.photos['train']} to train on, {manifest.photos['validation']} held out, "
        f"{manifest.left_out} left out",
        f"sizes       {_size(facts['smallest'])} to {_size(facts['largest'])}",
        f"sub-images  {facts['sub_images']} of {manifest.cutting.sub_image} px, step {manifest.cutting.step}",
        f"shards      {facts['shards']}, {facts['bytes'] / 2**20:.0f} MiB as {manifest.cutting.encoding}, "
        f"{facts['megapixels']:.0f} Mpx",
        f"digest      {manifest.digest[:16]}",
        *(f"left out    {name}: {reason}" for name, reason in facts["left_out"].items()),
    ]
    return facts, "\n".join(lines)


def preview_sheet(recipe: Recipe, places: Sequence[str], output: str) -> None:
    """Write a contact sheet of a recipe's degradation on these photos, or on scikit-image's."""
    photos = (
        [rgb8(read_photo(found.uri)) for found in find_photos(places)[:PREVIEW_PHOTOS]] if places else _samples()
    )
    sheet = contact_sheet(photos, recipe.degradation, recipe.scale, recipe.seed)
    write_photo(output, Photo(sheet))


def _samples() -> list[np.ndarray]:
    from skimage import data

    return [np.asarray(photo) for photo in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())]


def _size(side: list[int]) -> str:
    return f"{side[0]}x{side[1]}"
