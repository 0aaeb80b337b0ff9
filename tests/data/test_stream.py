"""Crops and their order: the same from one task or many, from memory or from storage, from any row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from ray_sr.data.crops import CropPlan, Visit, crop_generator, make_crops
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import (
    BatchStream,
    CachedPixels,
    StoredPixels,
    batch_dataset,
    open_pixels,
    open_stream,
    read_index,
    validation_photos,
)
from ray_sr.errors import InputError, RecipeError
from ray_sr.recipe_reader import parse_recipe
from ray_sr.resample import downscale_array
from tests.photos import noise, real_photos, write_real_photos

RECIPE = parse_recipe("{name: t, seed: 5, data: {crop: 48, batch: 8, crops_per_image: 4}, pretrain: {steps: 50}}")
PLAN = CropPlan.of(RECIPE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    folder = tmp_path_factory.mktemp("stream")
    photos = find_photos([str(write_real_photos(folder / "photos"))])
    cutting = Cutting(sub_image=96, step=96, minimum=64)
    prepare(photos, str(folder / "shards"), cutting=cutting, hold_out=["rocket.png"])
    return str(folder / "shards")


def test_a_crop_follows_from_seed_sub_image_epoch_and_number_alone() -> None:
    images = [noise(100, 120, seed) for seed in range(3)]
    visits = [Visit(image, number * 17 - 3, 2) for number, image in enumerate(images)]
    lr, hr = make_crops(visits, PLAN)
    alone_lr, alone_hr = make_crops(visits[1:2], PLAN)
    np.testing.assert_array_equal(hr[4:8], alone_hr)
    np.testing.assert_array_equal(lr[4:8], alone_lr)
    other_epoch = make_crops([Visit(images[1], visits[1].id, 3)], PLAN)[1]
    assert not np.array_equal(alone_hr, other_epoch)


def test_crops_are_turned_parts_of_the_sub_image() -> None:
    """Every crop is found in one of the eight turns of its sub-image."""
    image = noise(60, 70)
    _, crops = make_crops([Visit(image, 1, 0)], PLAN)
    turned = [np.rot90(flipped, k) for flipped in (image, image[:, ::-1]) for k in range(4)]
    windows = [np.lib.stride_tricks.sliding_window_view(t, (48, 48, 3))[:, :, 0] for t in turned]
    for crop in crops:
        assert any((window == crop).all(axis=(2, 3, 4)).any() for window in windows)


def test_flips_and_turns_all_occur_equally_often() -> None:
    plan = parse_recipe("{name: t, data: {crop: 8, batch: 256, crops_per_image: 256}, pretrain: {steps: 1}}")
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    _, crops = make_crops([Visit(image, 0, 0)], CropPlan.of(plan))
    orientations, counts = np.unique(crops[..., 0].reshape(256, -1), axis=0, return_counts=True)
    assert len(orientations) == 8
    assert counts.min() > 16


def test_lr_is_matlab_bicubic_of_the_crop_within_rounding() -> None:
    photo = real_photos()["coffee"]
    lr, hr = make_crops([Visit(photo, 0, 0)], PLAN)
    for small, large in zip(lr, hr, strict=True):
        exact = downscale_array(large, 4).astype(int)
        assert np.abs(exact - small).max() <= 1


def test_generators_of_different_keys_do_not_repeat() -> None:
    first = [
        crop_generator(*key).random()
        for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    assert len(set(first)) == 5
    assert (
        crop_generator(2**62, -(2**63), 10**6, 255).random() == crop_generator(2**62, -(2**63), 10**6, 255).random()
    )


def test_every_sub_image_is_seen_once_in_an_epoch(shards: str) -> None:
    index = read_index(shards, "train")
    for pixels in (StoredPixels(index), open_pixels(index, "memory")):
        orders = [pixels.order(0, epoch) for epoch in range(2)]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), np.arange(len(index)))
        assert not np.array_equal(*orders)


def test_memory_and_storage_give_the_same_pixels(shards: str) -> None:
    index = read_index(shards, "train")
    cached, stored = open_pixels(index, "memory"), open_pixels(index, "stream")
    assert isinstance(cached, CachedPixels)
    assert isinstance(stored, StoredPixels)
    numbers = np.random.default_rng(0).permutation(len(index)).tolist()
    for a, b in zip(cached.fetch(numbers), stored.fetch(numbers), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_ray_data_gives_the_rows_in_order_whatever_the_blocks(shards: str, cache: str) -> None:
    """The data set, made by parallel tasks, equals batches made here one by one; a later start goes on exactly."""
    recipe = RECIPE.model_copy(update={"data": RECIPE.data.model_copy(update={"cache": cache})})
    stream = open_stream(recipe, shards, lambda: 0)
    rows = 2 * len(stream.index)  # more than one epoch
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    got = list(batch_dataset(stream, rows).iter_batches(batch_size=1, batch_format="numpy"))
    assert [int(batch["row"][0]) for batch in got] == list(range(rows))
    for row in (0, 1, rows // 2, rows - 1):
        lr, hr = stream.batches([row])
        np.testing.assert_array_equal(got[row]["lr"], lr)
        np.testing.assert_array_equal(got[row]["hr"], hr)
    late = BatchStream(stream.index, stream.pixels, stream.plan, stream.visits, lambda: 7)
    first = next(iter(batch_dataset(late, 3).iter_batches(batch_size=1, batch_format="numpy")))
    np.testing.assert_array_equal(first["hr"], got[7]["hr"])


def test_validation_photos_are_whole(shards: str) -> None:
    ((name, pixels),) = validation_photos(shards, 5)
    assert name == "rocket.png"
    assert pixels.shape == (300, 300, 3)
    assert validation_photos(shards, 0) == []


def test_a_crop_larger_than_every_sub_image_is_refused(shards: str) -> None:
    recipe = RECIPE.model_copy(update={"data": RECIPE.data.model_copy(update={"crop": 128})})
    with pytest.raises(RecipeError, match=r"data\.crop 128: no sub-image"):
        open_stream(recipe, shards, lambda: 0)


def test_a_damaged_shard_is_named(shards: str, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    index = read_index(str(copy), "train")
    victim = copy / index.files[0]
    data = bytearray(victim.read_bytes())
    data[4 : len(data) // 2] = b"\0" * (len(data) // 2 - 4)
    victim.write_bytes(data)
    with pytest.raises(InputError, match=victim.name):
        StoredPixels(index).fetch(list(range(len(index))))
