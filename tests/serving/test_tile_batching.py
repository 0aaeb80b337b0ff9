"""Pictures that share a device: batches of equal tiles, in order, jobs last, and errors to whom they belong."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_sr.images import Photo
from ray_sr.models import build_generator
from ray_sr.recipes.networks import MSRResNetSpec, NetworkSpec
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.replica import GeneratorReplica
from ray_sr.serving.tile_batching import Abandoned, Batches, Turn
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine, upscale_photo


class Doubling(nn.Module):
    """Doubles what it gets, one run at a time; waits at a gate; notes which pictures each run had.

    A picture's number is the value of its pixels. Those that are negative fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.runs: list[list[int]] = []
        self.begun = threading.Event()
        self._running = threading.Lock()

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        assert self._running.acquire(blocking=False), "two runs at the same time"
        try:
            self.runs.append([int(tile[0, 0, 0]) for tile in tiles])
            self.begun.set()
            assert self.gate.wait(60)
            if (tiles < 0).any():
                raise RuntimeError("a negative tile")
            return 2 * tiles
        finally:
            self._running.release()


class Pictures:
    """Pictures of one tile each that come one after the other while the first one's run is held up."""

    def __init__(self, batches: Batches, network: Doubling, most_pixels: int) -> None:
        self.batches, self.network, self.most_pixels = batches, network, most_pixels
        self.pool = ThreadPoolExecutor(32)
        self.results: dict[int, Future[torch.Tensor]] = {}
        self.gone: dict[int, threading.Event] = {}

    def send(self, number: int, side: int = 4, job: bool = False) -> None:
        """Returns when the picture waits for the device, or runs."""
        entered = threading.Event()
        gone = self.gone[number] = threading.Event()

        def work() -> torch.Tensor:
            with self.batches.turn(gone, self.most_pixels, job) as turn:
                entered.set()
                return turn.run(self.network, torch.full((1, 3, side, side), float(number)))

        before = len(self.batches._waiting)
        self.results[number] = self.pool.submit(work)
        assert entered.wait(60)
        if len(self.results) == 1:
            assert self.network.begun.wait(60)
            return
        with self.batches._changed:
            assert self.batches._changed.wait_for(lambda: len(self.batches._waiting) > before, 60)

    def finish(self) -> None:
        """Opens the gate and checks every result that is no error."""
        self.network.gate.set()
        for number, result in self.results.items():
            if number >= 0 and not self.gone[number].is_set():
                assert (result.result(60) == 2 * number).all()
        self.pool.shutdown()


def pictures(most: int, most_pixels: int = 10_000) -> Pictures:
    return Pictures(Batches(most), Doubling(), most_pixels)


def test_tiles_that_wait_run_together() -> None:
    some = pictures(most=3)
    for number in range(6):
        some.send(number)
    some.finish()
    assert some.network.runs == [[0], [1, 2, 3], [4, 5]]


def test_one_at_a_time_keeps_the_order() -> None:
    some = pictures(most=1)
    for number in range(5):
        some.send(number)
    some.finish()
    assert some.network.runs == [[0], [1], [2], [3], [4]]


def test_tiles_of_other_sizes_wait_for_their_turn() -> None:
    some = pictures(most=8)
    for number, side in enumerate([4, 4, 6, 4, 6]):
        some.send(number, side)
    some.finish()
    assert some.network.runs == [[0], [1, 3], [2, 4]]


def test_a_batch_has_no_more_pixels_than_the_largest_tile() -> None:
    some = pictures(most=8, most_pixels=2 * 16 + 5)
    for number, side in enumerate([4, 4, 4, 4, 50]):
        some.send(number, side)
    some.finish()
    assert some.network.runs == [[0], [1, 2], [3], [4]]


def test_jobs_go_last() -> None:
    some = pictures(most=2)
    some.send(0)
    some.send(1, job=True)
    for number in (2, 3, 4):
        some.send(number)
    some.finish()
    assert some.network.runs == [[0], [2, 3], [4, 1]]


def test_who_has_left_is_not_run() -> None:
    some = pictures(most=8)
    for number in range(4):
        some.send(number)
    some.gone[2].set()
    some.finish()
    with pytest.raises(Abandoned):
        some.results[2].result(60)
    assert some.network.runs == [[0], [1, 3]]


def test_an_error_is_told_to_its_own_picture_alone() -> None:
    some = pictures(most=8)
    for number in (1, 2, -3, 4):
        some.send(number)
    some.finish()
    with pytest.raises(RuntimeError, match="a negative tile"):
        some.results[-3].result(60)
    assert some.network.runs == [[1], [2, -3, 4], [2], [-3], [4]]


def test_who_is_alone_does_not_wait() -> None:
    sizes: list[int] = []
    batches, network = Batches(16, wait_s=3600, note=sizes.append), Doubling()
    network.gate.set()
    with batches.turn(threading.Event(), 10_000) as turn:
        for _ in range(3):
            turn.run(network, torch.zeros(1, 3, 4, 4))
    assert sizes == [1, 1, 1]


def test_a_batch_waits_for_a_picture_that_is_at_work() -> None:
    sizes: list[int] = []
    batches, network = Batches(16, wait_s=3600, note=sizes.append), Doubling()
    network.gate.set()

    def run(turn: Turn) -> torch.Tensor:
        return turn.run(network, torch.ones(1, 3, 4, 4))

    here = threading.Event()
    with ThreadPoolExecutor(2) as pool, batches.turn(here, 10_000) as one, batches.turn(here, 10_000) as two:
        first = pool.submit(run, one)
        with batches._changed:
            assert batches._changed.wait_for(lambda: batches._running, 60)
        second = pool.submit(run, two)
        assert (first.result(60) == 2).all()
        assert (second.result(60) == 2).all()
    assert sizes == [2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    torch.manual_seed(3)
    network = NetworkSpec(scale=2, generator=MSRResNetSpec(blocks=1, channels=8))
    place = Store(tmp_path / "store")
    place.publish("tiny", build_generator(network), network)
    return place


def test_a_replica_gives_each_photo_its_own_result(store: Store) -> None:
    random = np.random.default_rng(4)
    photos = [Photo(random.integers(0, 256, (24, 32, 3), np.uint8)) for _ in range(12)]
    options = ServiceOptions(
        model="tiny", store=store.root, device="cpu", batch_tiles=4, requests_per_replica=4, tile=64
    )
    generator = GeneratorReplica(options)
    sizes: list[int] = []
    generator._batches.note = sizes.append

    async def all_at_once() -> list[np.ndarray]:
        found = await asyncio.gather(*(generator.upscale(photo, 2.0, 2) for photo in photos))
        return [one.photo.pixels for one in found]

    results = asyncio.run(all_at_once())
    assert sum(sizes) == len(photos)
    assert 1 < max(sizes) <= 4
    model = load_model("tiny", store)
    engine = Engine(model.module, model.capability, device="cpu", tile=64)
    for photo, result in zip(photos, results, strict=True):
        alone = upscale_photo(photo, engine).pixels
        assert np.abs(result.astype(int) - alone).max() <= 1
        assert (result == alone).mean() > 0.99


class Looks:
    """Ends a replica's watch over the store after some looks."""

    def __init__(self, count: int) -> None:
        self.left = count

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0

    def set(self) -> None:
        self.left = 0


def test_a_new_version_is_taken_over_after_errors_of_any_kind(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that does not suffice while a model is loaded beside the old one ended the thread, in silence."""
    options = ServiceOptions(model="tiny", store=store.root, device="cpu", tile=64, follow_s=1000)
    replica = GeneratorReplica(options)
    network = NetworkSpec(scale=2, generator=MSRResNetSpec(blocks=1, channels=8))
    torch.manual_seed(4)
    newer = store.publish("tiny", build_generator(network), network)
    failures = [torch.OutOfMemoryError("CUDA out of memory.\nMore of it"), ValueError("torn")]
    load = replica._load

    def fail_first(model: object) -> object:
        if failures:
            raise failures.pop(0)
        return load(model)  # type: ignore[arg-type]

    monkeypatch.setattr(replica, "_load", fail_first)
    monkeypatch.setattr(replica, "_ended", Looks(3))
    replica._follow()
    assert replica._held.info.version == newer
    told = [record.message for record in caplog.records]
    assert any(line.endswith("to be tried again: OutOfMemoryError: CUDA out of memory.") for line in told)
    assert any(line.endswith("to be tried again: ValueError: torn") for line in told)
