"""The table of jobs: bounded in number, bytes and time, and the same again in the next process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ray_sr.errors import ResourceError
from ray_sr.serving import job_table
from ray_sr.serving.codec import Encoded, EncodeSettings
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.job_storage import JobStorage
from ray_sr.serving.job_table import JobTable, OnProgress
from ray_sr.serving.options import JobLimits, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.responses import Answer
from ray_sr.serving.schemas import ModelInfo, Permit

QUERY = UpscaleQuery(format="png")
SETTINGS = EncodeSettings(2, 2, "png", 95, False, (255, 255, 255), "keep")
Work = Callable[[bytes, UpscaleQuery, OnProgress, Permit], Awaitable[Answer]]


def answer(data: bytes) -> Answer:
    return Answer(Encoded(data, 1, 1, ()), SETTINGS, ModelInfo(name="m", version="0" * 12, scale=2), {})


async def echo(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
    """Ends at once: the picture as it came."""
    on_progress(0.5)
    return answer(data)


async def hang(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
    await asyncio.sleep(3600)
    raise AssertionError("unreachable")


class Desk:
    """A table on the storage of a folder, as the ingress uses both."""

    def __init__(self, folder: Path, work: Work = echo, **limits: Any) -> None:
        self.storage = JobStorage(str(folder))
        self.ended: list[str] = []
        self.allowed = True
        self.table = JobTable(
            JobLimits(**limits),
            self.storage,
            work,
            is_allowed=lambda: self.allowed,
            ended=lambda record: self.ended.append(record.state),
        )

    async def begin(self, picture: bytes, client: str = "", key: str | None = None) -> str:
        record = JobRecord(
            client=client,
            idempotency_key=key,
            fingerprint=picture.hex(),
            query=QUERY,
            picture_bytes=len(picture),
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        self.storage.write_picture(record.id, picture)
        return (await self.table.begin(record)).id

    async def wait(self, id: str, *states: str, client: str = "") -> JobRecord:
        async with asyncio.timeout(30):
            async for record in self.table.watch(id, client):
                if record.state in states or (record.ended and not states):
                    return record
        raise AssertionError(record.state)

    def result(self, id: str) -> bytes:
        stream = self.storage.open_result(id)
        assert stream is not None
        with stream:
            return bytes(stream.read())

    def files(self) -> set[str]:
        root = Path(self.storage.location)
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_result_is_in_storage_and_the_picture_is_not_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        await desk.table.open()
        id = await desk.begin(b"picture")
        record = await desk.wait(id)
        assert (record.state, record.progress, record.result_bytes) == ("succeeded", 1.0, 7)
        assert desk.result(id) == b"picture"
        assert desk.files() == {f"records/{id}.json", f"results/{id}"}
        assert desk.storage.load(id) == record
        assert desk.ended == ["succeeded"]

    asyncio.run(scenario())


def test_no_more_than_so_many_wait_and_one_runs_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, hang, waiting=3, running=1)
        await desk.table.open()
        held = [await desk.begin(b"x%d" % number) for number in range(3)]
        with pytest.raises(Problem, match="3 jobs are waiting") as caught:
            await desk.begin(b"x")
        assert caught.value.status == 503
        await desk.wait(held[0], "running")
        assert [desk.table.find(id, "").state for id in held] == ["running", "queued", "queued"]
        await desk.table.cancel(held[0], "")
        await desk.wait(held[1], "running")
        for id in held[1:]:
            await desk.table.cancel(id, "")
        assert desk.ended == ["canceled"] * 3
        assert not any(name.startswith("results") for name in desk.files())

    asyncio.run(scenario())


def test_old_results_make_room_for_new_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, bytes=100, kept=3, waiting=2)
        await desk.table.open()
        first = await desk.begin(bytes(60))
        await desk.wait(first)
        second = await desk.begin(bytes(30))
        await desk.wait(second)
        assert desk.table.find(first, "").id == first
        third = await desk.begin(bytes(60))
        await desk.wait(third)
        with pytest.raises(Problem) as caught:
            desk.table.find(first, "")
        assert caught.value.kind == "gone"
        assert {desk.table.find(id, "").state for id in (second, third)} == {"succeeded"}
        with pytest.raises(Problem, match="no room"):
            await desk.begin(bytes(101))

    asyncio.run(scenario())


def test_results_expire_and_leave_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, kept_s=0.05)
        await desk.table.open()
        id = await desk.begin(b"x")
        await desk.wait(id)
        async with asyncio.timeout(30):
            while desk.files():
                await asyncio.sleep(0.01)
        with pytest.raises(Problem) as caught:
            desk.table.find(id, "")
        assert caught.value.status == 410

    asyncio.run(scenario())


def test_jobs_belong_to_who_began_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        await desk.table.open()
        id = await desk.begin(b"x", "ann", "key")
        await desk.wait(id, client="ann")
        assert await desk.begin(b"x", "ann", "key") == id
        assert await desk.begin(b"x", "bob", "key") != id
        with pytest.raises(Problem) as caught:
            await desk.begin(b"y", "ann", "key")
        assert caught.value.kind == "idempotency-conflict"
        with pytest.raises(Problem) as caught:
            desk.table.find(id, "bob")
        assert caught.value.status == 404

    asyncio.run(scenario())


def test_work_that_takes_too_long_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, hang, deadline_s=0.05)
        await desk.table.open()
        record = await desk.wait(await desk.begin(b"x"))
        assert record.state == "failed"
        error = record.status("").error
        assert error is not None
        assert (error.status, error.type) == (504, "/problems/timeout")

    asyncio.run(scenario())


def test_lost_replica_is_tried_again_and_a_bad_picture_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[tuple[bytes, str]] = []

    async def unlucky(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        attempts.append((data, permit.run))
        if data == b"bad":
            raise Problem("image-corrupt", "damaged")
        if len(attempts) < 3:
            raise Problem("starting", "the replica is gone")
        assert desk.table.permits(permit.job, permit.run)
        assert not any(desk.table.permits(permit.job, run) for _, run in attempts[:-1]), "former work must stop"
        return answer(data)

    async def scenario() -> None:
        monkeypatch.setattr(job_table, "RETRY_AFTER_S", 0.01)
        await desk.table.open()
        assert (await desk.wait(await desk.begin(b"good"))).state == "succeeded"
        assert [data for data, _ in attempts] == [b"good"] * 3
        assert (await desk.wait(await desk.begin(b"bad"))).state == "failed"
        assert [data for data, _ in attempts[3:]] == [b"bad"]

    desk = Desk(tmp_path, unlucky)
    asyncio.run(scenario())


def test_picture_that_ends_each_replica_is_given_up_but_a_missing_replica_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    async def deadly(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        nonlocal attempts
        attempts += 1
        if attempts > 20:
            on_progress(0.0)
        raise Problem("starting", "the replica is gone")

    async def scenario() -> None:
        monkeypatch.setattr(job_table, "RETRY_AFTER_S", 0.001)
        desk = Desk(tmp_path, deadly)
        await desk.table.open()
        assert (await desk.wait(await desk.begin(b"deadly"))).state == "failed"
        assert attempts == 25

    asyncio.run(scenario())


# ---------------------------------------------------------------------------- the next process


def test_next_process_has_the_results_and_takes_up_what_had_not_ended(tmp_path: Path) -> None:
    runs: list[str] = []

    async def noted_hang(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        runs.append(permit.run)
        on_progress(0.7)
        return await hang(data, query, on_progress, permit)

    async def first_process() -> tuple[str, str, str]:
        desk = Desk(tmp_path)
        await desk.table.open()
        done = await desk.begin(b"done", key="one")
        await desk.wait(done)
        desk.table.close()
        stuck = Desk(tmp_path, noted_hang)
        await stuck.table.open()
        running, queued = await stuck.begin(b"running"), await stuck.begin(b"queued")
        async with asyncio.timeout(30):
            while stuck.table.find(running, "").progress == 0:
                await asyncio.sleep(0.01)
        return done, running, queued  # as kill -9 does: nothing is closed

    async def second_process(done: str, running: str, queued: str) -> None:
        desk = Desk(tmp_path)
        with pytest.raises(Problem) as caught:
            desk.table.find(done, "")
        assert caught.value.kind == "starting", "before storage is read, nothing is said to be gone"
        await desk.table.open()
        assert desk.table.find(done, "").state == "succeeded"
        assert await desk.begin(b"done", key="one") == done
        assert not desk.table.permits(running, runs[0]), "the former process's work must stop"
        for id, content in ((running, b"running"), (queued, b"queued")):
            assert (await desk.wait(id)).state == "succeeded"
            assert desk.result(id) == content
        assert desk.storage.load(running).starts == 2  # type: ignore[union-attr]
        assert desk.result(done) == b"done"

    ids = asyncio.run(first_process())
    asyncio.run(second_process(*ids))


def test_picture_that_ends_its_process_each_time_is_given_up(tmp_path: Path) -> None:
    async def one_process(work: Work) -> JobRecord | None:
        desk = Desk(tmp_path, work)
        await desk.table.open()
        if not desk.table.records():
            await desk.begin(b"poison")
        (record,) = desk.table.records()
        if work is hang:
            async with asyncio.timeout(30):
                while desk.storage.load(record.id).starts <= before:  # type: ignore[union-attr]
                    await asyncio.sleep(0.01)
            return None
        return await desk.wait(record.id)

    for before in range(5):  # noqa: B007
        asyncio.run(one_process(hang))
    record = asyncio.run(one_process(echo))
    assert record is not None
    assert record.state == "failed"
    assert record.problem is not None
    assert "5 times" in record.problem.detail


def test_nothing_is_permitted_without_the_lease(tmp_path: Path) -> None:
    permits: list[Permit] = []

    async def noted(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        permits.append(permit)
        return await hang(data, query, on_progress, permit)

    async def scenario() -> None:
        desk = Desk(tmp_path, noted)
        await desk.table.open()
        id = await desk.begin(b"x")
        async with asyncio.timeout(30):
            while not permits:
                await asyncio.sleep(0.01)
        (permit,) = permits
        assert desk.table.permits(permit.job, permit.run)
        desk.allowed = False
        assert not desk.table.permits(permit.job, permit.run)
        desk.allowed = True
        await desk.table.cancel(id, "")
        assert not desk.table.permits(permit.job, permit.run)
        assert not desk.table.permits(permit.job, "")

    asyncio.run(scenario())


def test_storage_that_fails_for_a_while_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flaky(JobStorage):
        failing = False
        failures = 0

        def _write(self, path: str, data: bytes) -> None:
            if self.failing:
                self.failures += 1
                self.failing = self.failures % 4 != 0
                raise ResourceError("the bucket does not answer")
            super()._write(path, data)

    async def scenario() -> None:
        monkeypatch.setattr(job_table, "_STORAGE_PAUSE_S", 0.001)
        desk = Desk(tmp_path, held_back)
        desk.storage = desk.table._storage = storage = Flaky(str(tmp_path))
        await desk.table.open()
        id = await desk.begin(b"picture")
        storage.failing = True
        with pytest.raises(Problem, match="does not answer"):
            await desk.table.begin(desk.table.find(id, "").changed(id="another-job-of-mine"))
        storage.failing = True
        go_on.set()
        assert (await desk.wait(id)).state == "succeeded"
        assert desk.result(id) == b"picture"
        assert storage.failures == 4

    go_on = threading.Event()

    async def held_back(data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        await asyncio.to_thread(go_on.wait, 30)
        return answer(data)

    asyncio.run(scenario())


def test_picture_that_is_not_in_storage_is_said_to_be_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, hang, running=1)
        await desk.table.open()
        await desk.begin(b"first")
        lost = await desk.begin(b"second")
        desk.storage.delete_picture(lost)
        await desk.table.cancel(desk.table.records()[0].id, "")
        record = await desk.wait(lost)
        assert record.problem is not None
        assert record.problem.kind == "gone"

    asyncio.run(scenario())
