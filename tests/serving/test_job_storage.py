"""Files of jobs on a folder and in a bucket; and the lease, by which one process at a time owns them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ray_sr.errors import InputError, ResourceError
from ray_sr.serving.job_lease import JobLease
from ray_sr.serving.job_records import JobProblem, JobRecord
from ray_sr.serving.job_storage import JobStorage
from ray_sr.serving.options import UpscaleQuery
from ray_sr.serving.problems import Problem

LEASE_S = 0.6
pytestmark = pytest.mark.slow  # leases are waited for


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> JobStorage:
    if request.param == "folder":
        return JobStorage(str(tmp_path))
    return JobStorage(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def record(number: int) -> JobRecord:
    problem = JobProblem.of(Problem("overloaded", "full", retry_after=7, limit=3))
    return JobRecord(
        id=f"job-number-{number}",
        client="ann",
        fingerprint="f",
        query=UpscaleQuery(format="webp", scale=2),
        picture_bytes=3,
        created_at=datetime(2026, 1, number, tzinfo=UTC),
        expires_at=datetime(2027, 1, 1, tzinfo=UTC),
        problem=problem,
    )


def test_records_come_back_as_they_were_the_oldest_first(storage: JobStorage) -> None:
    later, earlier = record(9), record(2)
    storage.save(later)
    storage.save(earlier)
    assert storage.load_all() == [earlier, later]
    assert storage.load(later.id) == later
    restored = later.problem.restored()  # type: ignore[union-attr]
    assert (restored.status, restored.headers, restored.facts["limit"]) == (503, {"Retry-After": "7"}, 3)
    assert storage.load("job-number-3") is None
    assert storage.load("../records/job-number-2") is None


def test_pictures_and_results(storage: JobStorage) -> None:
    one = record(1)
    storage.save(one)
    storage.write_picture(one.id, b"picture")
    storage.write_result(one.id, b"result")
    assert storage.read_picture(one.id) == b"picture"
    stream = storage.open_result(one.id)
    assert stream is not None
    with stream:
        assert stream.read() == b"result"
    storage.forget(one.id)
    storage.forget(one.id)
    assert storage.read_picture(one.id) is None
    assert storage.open_result(one.id) is None
    assert storage.load_all() == []


def test_strays_are_swept_away_when_they_are_old(tmp_path: Path) -> None:
    storage = JobStorage(str(tmp_path))
    for id in ("known-old-one", "stray-old-one", "stray-new-one"):
        storage.write_picture(id, b"x")
        if "old" in id:
            os.utime(tmp_path / "pictures" / id, (time.time() - 7200,) * 2)
    storage.sweep({"known-old-one"})
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"known-old-one", "stray-new-one"}


def test_damaged_record_is_left_out(tmp_path: Path) -> None:
    storage = JobStorage(str(tmp_path))
    storage.save(record(1))
    (tmp_path / "records" / "job-number-2.json").write_text('{"id": ')
    assert storage.load_all() == [record(1)]


def test_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file/jobs: cannot make"):
        JobStorage(str(tmp_path / "file" / "jobs"))
    with pytest.raises(InputError, match="nowhere://"):
        JobStorage("nowhere://jobs")


# ---------------------------------------------------------------------------- the lease


class Process:
    """One that wants the jobs; `events` of all processes in their order."""

    def __init__(self, name: str, storage: JobStorage, events: list[str]) -> None:
        self._name, self._events = name, events
        self.lease = JobLease(storage, LEASE_S, gained=self._gained, lost=self._lost)
        self.task = asyncio.create_task(self.lease.keep())

    async def _gained(self) -> None:
        self._events.append(f"{self._name} gained")

    def _lost(self) -> None:
        self._events.append(f"{self._name} lost")

    async def dies(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def ends(self) -> None:
        await self.dies()
        self.lease.release()


Start = Callable[..., Process]  # (name, storage = one on the folder)


def in_folder(tmp_path: Path, scenario: Callable[[Start, list[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        events: list[str] = []
        processes: list[Process] = []

        def start(name: str, storage: JobStorage | None = None) -> Process:
            processes.append(Process(name, storage or JobStorage(str(tmp_path)), events))
            return processes[-1]

        async with asyncio.timeout(60):
            await scenario(start, events)
        for process in processes:
            await process.dies()

    asyncio.run(run())


def is_held(process: Process) -> Callable[[], bool]:
    return lambda: process.lease.is_held


async def until(condition: Callable[[], bool]) -> float:
    begin = time.monotonic()
    while not condition():
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


def test_first_process_and_one_after_a_release_need_not_wait(tmp_path: Path) -> None:
    async def scenario(start: Start, events: list[str]) -> None:
        for name in ("a", "b"):
            process = start(name)
            assert await until(is_held(process)) < LEASE_S / 2
            await process.ends()
        assert events == ["a gained", "b gained"]

    in_folder(tmp_path, scenario)


def test_process_after_one_that_was_killed_waits_for_a_lease(tmp_path: Path) -> None:
    async def scenario(start: Start, events: list[str]) -> None:
        first = start("a")
        await until(lambda: first.lease.is_held)
        await first.dies()
        second = start("b")
        assert await until(lambda: second.lease.is_held) > 0.9 * LEASE_S
        assert not first.lease.is_held, "it lapses by itself"

    in_folder(tmp_path, scenario)


def test_never_do_two_hold_it_and_the_later_one_wins(tmp_path: Path) -> None:
    async def scenario(start: Start, events: list[str]) -> None:
        first = start("a")
        await until(lambda: first.lease.is_held)
        second = start("b")
        end = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < end:
            assert not (first.lease.is_held and second.lease.is_held)
            await asyncio.sleep(0.002)
        assert second.lease.is_held
        assert events == ["a gained", "a lost", "b gained"]
        await second.ends()
        await until(lambda: first.lease.is_held)
        assert events[-1] == "a gained"

    in_folder(tmp_path, scenario)


def test_who_was_pushed_out_takes_over_when_the_other_dies(tmp_path: Path) -> None:
    async def scenario(start: Start, events: list[str]) -> None:
        first = start("a")
        await until(lambda: first.lease.is_held)
        second = start("b")
        await until(lambda: second.lease.is_held)
        await second.dies()
        await until(lambda: first.lease.is_held)
        assert events == ["a gained", "a lost", "b gained", "a gained"]

    in_folder(tmp_path, scenario)


def test_two_that_claim_at_once_agree(tmp_path: Path) -> None:
    async def scenario(start: Start, events: list[str]) -> None:
        both = start("a"), start("b")
        end = time.monotonic() + 3 * LEASE_S
        while time.monotonic() < end:
            assert sum(one.lease.is_held for one in both) <= 1
            await asyncio.sleep(0.002)
        assert sum(one.lease.is_held for one in both) == 1

    in_folder(tmp_path, scenario)


class Delayed(JobStorage):
    """A storage without locks, whose first write of a claim takes until `go` is set."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._lock = None
        self.read, self.go = threading.Event(), threading.Event()

    def write_owner(self, data: bytes) -> None:
        self.read.set()
        self.go.wait()
        super().write_owner(data)


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.2, 2.5], ids=lambda leases: f"{leases:g} leases")
def test_claim_that_is_written_late_is_not_held_beside_another(tmp_path: Path, delay: float) -> None:
    """Both find nothing; the second one writes when the first may hold the jobs already."""
    first, second = Delayed(str(tmp_path)), Delayed(str(tmp_path))

    async def scenario(start: Start, events: list[str]) -> None:
        both = start("a", first), start("b", second)
        await asyncio.to_thread(first.read.wait)
        await asyncio.to_thread(second.read.wait)
        first.go.set()
        released, end = time.monotonic() + delay * LEASE_S, time.monotonic() + (delay + 8) * LEASE_S
        while not (second.go.is_set() and any(one.lease.is_held for one in both)) and time.monotonic() < end:
            assert sum(one.lease.is_held for one in both) <= 1
            if time.monotonic() > released:
                second.go.set()
            await asyncio.sleep(0.002)
        for _ in range(500):
            assert sum(one.lease.is_held for one in both) <= 1
            await asyncio.sleep(0.002)

    in_folder(tmp_path, scenario)


class Frozen(JobStorage):
    """A storage without locks, whose reads of the claim have what they read, but bring it only when `go` is set."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._lock = None
        self.go = threading.Event()
        self.go.set()

    def read_owner(self) -> bytes | None:
        found = super().read_owner()
        self.go.wait()
        return found


def test_look_that_comes_back_late_does_not_count_from_then(tmp_path: Path) -> None:
    storage = Frozen(str(tmp_path))

    async def scenario(start: Start, events: list[str]) -> None:
        first = start("a", storage)
        await until(lambda: first.lease.is_held)
        storage.go.clear()
        second = start("b")
        await until(lambda: second.lease.is_held)
        storage.go.set()
        for _ in range(200):
            assert not first.lease.is_held
            await asyncio.sleep(0.002)
        assert second.lease.is_held

    in_folder(tmp_path, scenario)


def test_holder_looks_while_it_takes_over_what_is_there(tmp_path: Path) -> None:
    """Many records take longer to read than a lease."""

    async def scenario(start: Start, events: list[str]) -> None:
        release = asyncio.Event()
        lost: list[None] = []

        async def gained() -> None:
            await release.wait()

        lease = JobLease(JobStorage(str(tmp_path)), LEASE_S, gained=gained, lost=lambda: lost.append(None))
        task = asyncio.create_task(lease.keep())
        await until(lambda: lease.is_held)
        await asyncio.sleep(1.5 * LEASE_S)
        assert lease.is_held
        assert not lost
        task.cancel()
        await asyncio.wait([task])

    in_folder(tmp_path, scenario)
