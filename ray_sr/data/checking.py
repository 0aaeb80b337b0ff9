"""Looks at shards and recipes: damage, counts, and what a degradation does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from ray_sr.data.manifest import Manifest, read_manifest, read_photos
from ray_sr.data.pixels import StoredPixels, read_index
from ray_sr.data.samples import SAMPLES, samples_folder
from ray_sr.data.shards import damage_of
from ray_sr.data.sources import find_photos, read_photo_bytes
from ray_sr.degradations.preview import contact_sheet
from ray_sr.errors import InputError
from ray_sr.images import Photo, PhotoError, decode, read_photo, rgb8, to_8_bits, write_photo
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import first_line

PREVIEW_PHOTOS = 6
SHEET_SIDE, THUMBNAIL = 8, 128
MEGAPIXELS = (0, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, math.inf)


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
        "duplicates": manifest.duplicates,
        "flat": sum(int(str(photo["flat"])) for photo in photos),
        "pairs_at_scale": manifest.cutting.input_scale or None,
        "resolutions": resolutions(sides),
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
        *(
            [f"dropped     {facts['flat']} near-flat, {facts['duplicates']} duplicate sub-images"]
            if facts["flat"] or facts["duplicates"]
            else []
        ),
        *(
            [f"pairs       input photos at 1/{manifest.cutting.input_scale}"]
            if manifest.cutting.input_scale
            else []
        ),
        f"shards      {facts['shards']}, {facts['bytes'] / 2**20:.0f} MiB as {_encoding(manifest)}, "
        f"{facts['megapixels']:.0f} Mpx",
        f"digest      {manifest.digest[:16]}",
        "megapixels  " + "\n            ".join(_bars(facts["resolutions"])),
        *(f"left out    {name}: {reason}" for name, reason in facts["left_out"].items()),
    ]
    return facts, "\n".join(lines)


def _encoding(manifest: Manifest) -> str:
    cutting = manifest.cutting
    return cutting.encoding if cutting.depth == 8 else f"{cutting.encoding} of {cutting.depth} bits"


def resolutions(sides: np.ndarray) -> dict[str, int]:
    """How many photos of N×2 sides there are between each two of `MEGAPIXELS`."""
    counts, _ = np.histogram(sides.prod(1) / 1e6, bins=MEGAPIXELS)
    names = [f"{low:g}-{high:g}" for low, high in pairwise(MEGAPIXELS)]
    names[-1] = f"{MEGAPIXELS[-2]:g}-"
    return dict(zip(names, counts.tolist(), strict=True))


def _bars(counts: dict[str, int]) -> list[str]:
    """A line for each range from the first to the last that is not empty."""
    filled = [number for number, count in enumerate(counts.values()) if count]
    shown = list(counts.items())[filled[0] : filled[-1] + 1]
    longest = max(counts.values())
    return [f"{name:>8} {count:>8} {'#' * math.ceil(40 * count / longest)}" for name, count in shown]


def sub_image_sheet(shards: str, output: str) -> None:
    """Write a contact sheet of up to `SHEET_SIDE`² sub-images, of photos spread over the whole set."""
    index = read_index(shards, "train")
    numbers = np.linspace(0, len(index) - 1, min(SHEET_SIDE**2, len(index))).round().astype(int)
    images = StoredPixels(index).fetch(numbers.tolist())
    thumbnails = [_thumbnail(to_8_bits(image.pixels)) for image in images]
    thumbnails += [np.full_like(thumbnails[0], 255)] * (-len(thumbnails) % SHEET_SIDE)
    rows = [np.concatenate(thumbnails[i : i + SHEET_SIDE], axis=1) for i in range(0, len(thumbnails), SHEET_SIDE)]
    write_photo(output, Photo(np.concatenate(rows)))


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """uint8 `THUMBNAIL`×`THUMBNAIL`×3 with the whole of it, on white."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL - 4, THUMBNAIL - 4))
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (255, 255, 255))
    sheet.paste(picture, ((THUMBNAIL - picture.width) // 2, (THUMBNAIL - picture.height) // 2))
    return np.asarray(sheet)


def preview_sheet(recipe: Recipe, places: Sequence[str], output: str) -> None:
    """Write a contact sheet of a recipe's degradation on these photos, or on scikit-image's."""
    photos = _chosen(places, recipe.scale) if places else _samples()
    sheet = contact_sheet(photos, recipe.degradation, recipe.scale, recipe.seed)
    write_photo(output, Photo(sheet))


def _chosen(places: Sequence[str], scale: int) -> list[np.ndarray]:
    """The first of the photos there. Raises InputError for one that cannot be read, or be shrunk by the scale."""
    chosen = []
    for found in find_photos(places)[:PREVIEW_PHOTOS]:
        try:
            photo = rgb8(decode(read_photo_bytes(found)))
        except (PhotoError, OSError) as error:
            raise InputError(f"{found.uri}: {first_line(error)}") from None
        if min(photo.shape[:2]) < scale:
            raise InputError(
                f"{found.uri}: {photo.shape[1]}x{photo.shape[0]} is too small to be shrunk {scale} times"
            )
        chosen.append(photo)
    return chosen


def _samples() -> list[np.ndarray]:
    folder = samples_folder()
    return [rgb8(read_photo(folder / name)) for name in SAMPLES]


def _size(side: list[int]) -> str:
    return f"{side[0]}x{side[1]}"
