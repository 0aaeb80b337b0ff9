"""Publishers that meet, die or find no room: what was there stays, and what is seen is whole."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from pyarrow import fs as pafs

from ray_sr.errors import ResourceError
from ray_sr.storage import filesystem as storage
from ray_sr.store import Store
from ray_sr.store import store as model_store
from tests.s3 import Wire
from tests.small_models import LARGE, NETWORK, RECIPE, files, generator, output

Processes = multiprocessing.context.ForkServerContext


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def processes() -> Processes:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray_sr.store"])
    return context


def publish_many(root: Path, seeds: list[int], begin: Barrier) -> None:
    torch.set_num_threads(1)
    store = Store(root)
    begin.wait(120)
    for seed in seeds:
        store.publish("small", generator(seed), NETWORK, promote="best")


def publish_and_die(root: Path, seed: int, writes: int, share: float) -> None:
    """Publish and promote, but be killed when `share` of the file after `writes` others is written."""
    torch.set_num_threads(1)
    count = 0

    def write_file(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
        nonlocal count
        if count == writes:
            with filesystem.open_output_stream(storage.temporary_name(path)) as stream:
                stream.write(data[: int(len(data) * share)])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        storage.write_file(filesystem, path, data)

    model_store.write_file = write_file
    Store(root).publish("small", generator(seed), NETWORK, recipe=RECIPE, promote="best")


def check_whole(store: Store, seeds: list[int]) -> list[str]:
    """Every listed model and every channel loads and is what one of the seeds makes; returns their names."""
    known = {output(generator(seed)).numpy().tobytes() for seed in seeds}
    refs = [record.ref for record in store.list()] + list(store.channels())
    for ref in refs:
        assert output(store.load(ref).module).numpy().tobytes() in known
    return refs


def test_two_publishers_at_once(store: Store, processes: Processes) -> None:
    begin = processes.Barrier(2)
    orders = ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
    both = [processes.Process(target=publish_many, args=(Path(store.root), seeds, begin)) for seeds in orders]
    for publisher in both:
        publisher.start()
    for publisher in both:
        publisher.join(120)
        assert publisher.exitcode == 0
    assert len(check_whole(store, orders[0])) == 7
    history = store.channels()["best"].history
    assert {event.version for event in history} == {record.version for record in store.list()}
    assert all(one.ref != following.ref for one, following in itertools.pairwise(history))
    assert not list(Path(store.root).rglob("*.tmp"))


# Half of the record is written, or all of the channel: one of each everywhere, every other moment by night.
KILLED = [
    pytest.param(writes, share, marks=[] if (writes, share) in ((3, 0.5), (4, 1.0)) else pytest.mark.nightly)
    for writes in range(5)
    for share in (0.5, 1.0)
]


@pytest.mark.parametrize(("writes", "share"), KILLED)
def test_killed_while_publishing(store: Store, processes: Processes, writes: int, share: float) -> None:
    """Weights, card, recipe, record, channel: killed in each, what was there stays and what is seen is whole."""
    former = store.publish("small", generator(1), NETWORK, promote="best")
    publisher = processes.Process(target=publish_and_die, args=(Path(store.root), 2, writes, share))
    publisher.start()
    publisher.join(120)
    assert publisher.exitcode == -signal.SIGKILL
    assert len(check_whole(store, [1, 2])) == (3 if writes == 4 else 2)
    assert store.load("best").version == former
    again = store.publish("small", generator(2), NETWORK, recipe=RECIPE, promote="best")
    assert store.load("best").version == again
    assert len(check_whole(store, [1, 2])) == 3
    assert not list(Path(store.root).rglob("*.tmp"))


@pytest.mark.parametrize(
    "writes", [pytest.param(0, marks=pytest.mark.nightly), 5, pytest.param(10, marks=pytest.mark.nightly)]
)
def test_s3_that_fails_halfway(s3: str, tmp_path: Path, writes: int) -> None:
    """The network is cut at one of the writes: what was there stays, what is seen is whole, one line says it."""
    root = f"{s3}/{tmp_path.name}/store"
    store = Store(root)
    former = store.publish("small", generator(1), NETWORK, promote="best")
    wire = Wire(writes)
    try:
        with pytest.raises(ResourceError, match=r"cannot|model store") as failure:
            Store(root + wire.options).publish("small", generator(2), NETWORK, recipe=RECIPE, promote="best")
        assert wire.is_dead
    finally:
        wire.close()
    assert "\n" not in str(failure.value)
    check_whole(store, [1, 2])
    assert store.load("best").version == former
    again = store.publish("small", generator(2), NETWORK, recipe=RECIPE, promote="best")
    assert store.load("best").version == again
    assert len(check_whole(store, [1, 2])) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MB of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("needs the right to mount a small tmpfs (root)")
    yield folder
    libc.umount(os.fsencode(folder))


def test_full_disk_keeps_the_former_best(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    former = store.publish("small", generator(1), NETWORK, promote="best")
    before = files(small_disk)
    with pytest.raises(ResourceError, match="cannot write") as refusal:
        store.publish("small", generator(2, LARGE), LARGE, promote="best")
    assert str(small_disk) in str(refusal.value)
    assert files(small_disk) == before
    assert store.load("best").version == former
    (small_disk / "fill").write_bytes(b"x" * 1_000_000)
    with pytest.raises(ResourceError, match="cannot write"):
        publish_without_end(store)
    assert "best" in check_whole(store, list(range(1, 200)))
    (small_disk / "fill").unlink()
    last = store.publish("small", generator(0), NETWORK, promote="best")
    assert store.load("best").version == last


def publish_without_end(store: Store) -> None:
    for seed in itertools.count(2):
        store.publish("small", generator(seed), NETWORK, promote="best")


def test_a_lock_that_hangs_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_sr.storage.lock.PATIENCE", 0.2)
    store.publish("small", generator(1), NETWORK)
    with store._lock(), pytest.raises(ResourceError, match="in use by another process for 0 s"):
        Store(store.root).publish("small", generator(2), NETWORK)
