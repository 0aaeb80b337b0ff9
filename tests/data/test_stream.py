"""Crops and their order: the same from one task or many, from memory or from storage, from any row."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sr.data.batches import Batch, local_batches, ray_data_batches
from ray_sr.data.crops import CropPlan, SubImage, Visit, crop_generator, make_crops
from ray_sr.data.manifest import Cutting
from ray_sr.data.pixels import CachedPixels, StoredPixels, open_pixels, read_index, validation_photos
from ray_sr.data.prefetch import prefetch_map, single_threaded
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import SEGMENT_BYTES, BatchStream, choose_place, open_stream, segments
from ray_sr.errors import InputError, RecipeError
from ray_sr.images.resample import downscale_array
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.worker import rows_of
from tests.photos import noise, real_photos, write_real_photos

RECIPE = parse_recipe("{name: t, seed: 5, data: {crop: 48, batch: 8, crops_per_image: 4}, pretrain: {steps: 50}}")
PLAN = CropPlan.of(RECIPE)


def crops_of(pixels: np.ndarray, plan: CropPlan, number: int = 0, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_crops([Visit(number, epoch, *pixels.shape[:2])], [SubImage(pixels)], plan)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    folder = tmp_path_factory.mktemp("stream")
    photos = find_photos([str(write_real_photos(folder / "photos"))])
    cutting = Cutting(sub_image=96, step=96, minimum=64)
    prepare(photos, str(folder / "shards"), cutting=cutting, hold_out=["rocket.png"])
    return str(folder / "shards")


def test_a_crop_follows_from_seed_sub_image_epoch_and_number_alone() -> None:
    images = [noise(100, 120, seed) for seed in range(3)]
    visits = [Visit(number * 17 - 3, 2, 100, 120) for number in range(3)]
    lr, hr = make_crops(visits, [SubImage(image) for image in images], PLAN)
    alone_lr, alone_hr = make_crops(visits[1:2], [SubImage(images[1])], PLAN)
    np.testing.assert_array_equal(hr[4:8], alone_hr)
    np.testing.assert_array_equal(lr[4:8], alone_lr)
    other_epoch = crops_of(images[1], PLAN, visits[1].id, 3)[1]
    assert not np.array_equal(alone_hr, other_epoch)


def test_crops_are_turned_parts_of_the_sub_image() -> None:
    """Every crop is found in one of the eight turns of its sub-image."""
    image = noise(60, 70)
    _, crops = crops_of(image, PLAN)
    turned = [np.rot90(flipped, k) for flipped in (image, image[:, ::-1]) for k in range(4)]
    windows = [np.lib.stride_tricks.sliding_window_view(t, (48, 48, 3))[:, :, 0] for t in turned]
    for crop in crops:
        assert any((window == crop).all(axis=(2, 3, 4)).any() for window in windows)


def test_flips_and_turns_all_occur_equally_often() -> None:
    plan = parse_recipe("{name: t, data: {crop: 8, batch: 256, crops_per_image: 256}, pretrain: {steps: 1}}")
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    _, crops = crops_of(image, CropPlan.of(plan))
    orientations, counts = np.unique(crops[..., 0].reshape(256, -1), axis=0, return_counts=True)
    assert len(orientations) == 8
    assert counts.min() > 16


def test_lr_is_matlab_bicubic_of_the_crop_within_rounding() -> None:
    photo = real_photos()["coffee"]
    lr, hr = crops_of(photo, PLAN)
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
        np.testing.assert_array_equal(a.pixels, b.pixels)


def with_data(**changes: object) -> Recipe:
    return RECIPE.model_copy(update={"data": RECIPE.data.model_copy(update=changes)})


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_ray_data_gives_the_rows_in_order_whatever_the_blocks(
    shards: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parallel tasks of several data sets give what is made here one by one, also of every third row."""
    monkeypatch.setattr("ray_sr.data.stream.SEGMENT_BLOCKS", 2)
    monkeypatch.setattr("ray_sr.data.stream.VISITS_PER_TASK", 8)
    stream = open_stream(with_data(cache=cache, degrade_in="tasks"), shards)
    rows = range(7, 7 + 3 * len(stream.index), 3)  # more than one epoch
    assert len(list(segments(stream, rows))) > 2
    got = list(ray_data_batches(stream, rows))
    assert [batch.row for batch in got] == list(rows)
    for batch in (*got[:2], got[len(got) // 2], got[-1]):
        lr, hr = stream.batches([batch.row])
        np.testing.assert_array_equal(batch.lr, lr[0])
        np.testing.assert_array_equal(batch.hr, hr[0])


def batches_of(stream: BatchStream, rows: range) -> list[Batch]:
    """As a training worker gets them."""
    return list(ray_data_batches(stream, rows) if stream.by_tasks else local_batches(stream, rows, 2))


@pytest.mark.parametrize("degradation", ["{kind: downscale}", "{kind: second_order}"])
def test_both_places_give_the_same_rows_from_any_start(shards: str, degradation: str) -> None:
    """Tasks or worker, memory or storage: equal pixels in equal order, also resumed inside the epoch."""
    steps = parse_recipe(f"{{name: t, degradation: [{degradation}], pretrain: {{steps: 1}}}}").degradation
    for cache in ("memory", "stream"):
        streams = [
            open_stream(
                with_data(cache=cache, degrade_in=place).model_copy(update={"degradation": steps}),
                shards,
                lambda: 0,
            )
            for place in ("tasks", "worker")
        ]
        assert [stream.by_tasks for stream in streams] == [True, cache == "stream"]
        here, there = (batches_of(stream, range(12)) for stream in streams)
        resumed = batches_of(streams[1], range(7, 12))
        assert [batch.row for batch in here] == list(range(12))
        for ours, theirs in [*zip(here, there, strict=True), *zip(here[7:], resumed, strict=True)]:
            assert ours.row == theirs.row
            np.testing.assert_array_equal(ours.hr, theirs.hr)
            np.testing.assert_array_equal(ours.lr, theirs.lr)


@pytest.mark.parametrize("place", ["tasks", "worker"])
def test_every_row_is_used_once_by_workers_that_stop_and_go_on_in_other_numbers(shards: str, place: str) -> None:
    stream = open_stream(with_data(cache="memory", degrade_in=place), shards)
    used: list[int] = []
    for first, last, world in ((0, 40, 2), (40, 52, 3), (52, 60, 1), (60, 80, 2)):
        for rank in range(world):
            used += [batch.row for batch in batches_of(stream, rows_of(rank, world, 2 * first, 2 * last))]
    assert sorted(used) == list(range(160))


def test_few_blocks_are_made_ahead(shards: str) -> None:
    """A run's rows are cut into pieces of some blocks, none of which lie in memory in great number."""
    stream = open_stream(with_data(cache="memory"), shards)
    whole = range(3, 10**12, 2)
    first, second = islice(segments(stream, whole), 2)
    assert (first.start, first[-1] + 2) == (3, second.start)
    assert len(first) == len(second)
    large = replace(stream, plan=replace(stream.plan, crop=1024, crops_per_image=16))
    for some in (stream, large):
        count = len(next(segments(some, whole)))
        assert count * some.visits * some.plan.crops_per_image * some.plan.crop**2 * 3 <= SEGMENT_BYTES
    assert list(segments(stream, range(5))) == [range(5)]


@pytest.mark.usefixtures("ray_local")
def test_a_worker_with_a_gpu_has_its_crops_made_by_tasks() -> None:
    cheap = CropPlan.of(parse_recipe("{name: t, pretrain: {steps: 1}}"))
    assert choose_place(cheap) == "worker"
    assert choose_place(cheap, gpu=True) == "tasks"


@pytest.mark.usefixtures("ray_local")
def test_costly_degradations_are_made_by_tasks() -> None:
    cheap, costly = (
        parse_recipe(f"{{name: t, degradation: [{{kind: {kind}}}], pretrain: {{steps: 1}}}}")
        for kind in ("downscale", "second_order")
    )
    assert choose_place(CropPlan.of(cheap)) == "worker"
    assert choose_place(CropPlan.of(costly)) == "tasks"


def test_threads_leave_the_number_of_torch_threads_to_the_caller() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batches_are_made_ahead_in_order_and_errors_arrive() -> None:
    def make(number: int) -> int:
        if number == 5:
            raise InputError("five")
        return number * number

    made = prefetch_map(make, range(100), 3)
    assert [next(made) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(InputError, match="five"):
        next(made)


def test_validation_photos_are_whole(shards: str) -> None:
    (photo,) = validation_photos(shards, 5)
    assert photo.name == "rocket.png"
    assert photo.pixels.shape == (300, 300, 3)
    assert photo.inputs is None
    assert validation_photos(shards, 0) == []


def test_a_crop_larger_than_every_sub_image_is_refused(shards: str) -> None:
    recipe = RECIPE.model_copy(update={"data": RECIPE.data.model_copy(update={"crop": 128})})
    with pytest.raises(RecipeError, match=r"data\.crop 128: no sub-image"):
        open_stream(recipe, shards)


@pytest.fixture
def damaged(shards: str, tmp_path: Path) -> tuple[str, str]:
    """A copy of the shards, and the name of the one in it whose pixels have one wrong bit."""
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    victim = copy / read_index(str(copy), "train").files[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    return str(copy), victim.name


def test_a_damaged_shard_is_named(damaged: tuple[str, str]) -> None:
    folder, victim = damaged
    index = read_index(folder, "train")
    with pytest.raises(InputError, match=victim):
        StoredPixels(index).fetch(list(range(len(index))))


@pytest.mark.parametrize("cache", ["memory", "stream"])
@pytest.mark.parametrize("place", ["tasks", "worker"])
def test_a_damaged_shard_stops_a_stream_with_its_name(damaged: tuple[str, str], cache: str, place: str) -> None:
    folder, victim = damaged
    stream = open_stream(with_data(cache=cache, degrade_in=place), folder)
    with pytest.raises(InputError, match=victim):
        batches_of(stream, range(len(stream.index)))


@pytest.mark.usefixtures("ray_local")
def test_a_damaged_shard_is_skipped_if_the_recipe_says_so(tmp_path: Path) -> None:
    for number in range(4):  # noise does not compress: each photo fills a shard
        Image.fromarray(noise(600, 640, number)).save(tmp_path / f"{number}.png")
    shards = str(tmp_path / "shards")
    prepare(find_photos([str(tmp_path)]), shards, cutting=Cutting(sub_image=320, step=320), hold_out=["0.png"])
    whole = read_index(shards, "train")
    victim = Path(shards) / whole.files[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(InputError, match=victim.name):
        open_stream(RECIPE, shards)
    stream = open_stream(with_data(damaged="skip"), shards)
    assert stream.index.skipped.keys() == {victim.name}
    assert set(stream.index.id.tolist()) == set(whole.id[whole.shard != 1].tolist())
    assert len(batches_of(stream, range(len(stream.index)))) == len(stream.index)
