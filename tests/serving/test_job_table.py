"""The table of jobs: bounded in number, bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ray_sr.serving.codec import Encoded
from ray_sr.serving.codec import EncodeSettings as Order
from ray_sr.serving.jobs import Job, Jobs, OnProgress
from ray_sr.serving.options import JobLimits, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.responses import Answer
from ray_sr.serving.schemas import ModelInfo

QUERY = UpscaleQuery(format="png")
ORDER = Order(2, 2, "png", 95, False, (255, 255, 255), "keep")


def answer(data: bytes) -> Answer:
    return Answer(Encoded(data, 1, 1, ()), ORDER, ModelInfo(name="m", version="0" * 12, scale=2), {})


async def echo(data: bytes, query: UpscaleQuery, progress: OnProgress) -> Answer:
    """Ends at once: the picture as it came."""
    progress(0.5)
    return answer(data)


async def hang(data: bytes, query: UpscaleQuery, progress: OnProgress) -> Answer:
    await asyncio.sleep(3600)
    raise AssertionError("unreachable")


def jobs(work: Callable[..., Awaitable[Answer]] = echo, **limits: Any) -> tuple[Jobs, list[str]]:
    ended: list[str] = []
    return Jobs(JobLimits(**limits), work, ended.append), ended


async def done(job: Job) -> Job:
    async with asyncio.timeout(30):
        while not job.ended:
            await job.changed.wait()
    return job


async def bytes_of(job: Job) -> bytes:
    assert job.result is not None
    return b"".join([piece async for piece in job.result.pieces(2)])


def test_result_is_kept_and_read_in_pieces() -> None:
    async def scenario() -> None:
        table, ended = jobs()
        job = await done(table.begin("", None, b"picture", QUERY))
        assert (job.state, job.progress, ended) == ("succeeded", 1.0, ["succeeded"])
        assert await bytes_of(job) == b"picture"

    asyncio.run(scenario())


def test_no_more_than_so_many_wait_and_one_runs_at_a_time() -> None:
    async def scenario() -> None:
        table, ended = jobs(hang, waiting=3, running=1)
        held = [table.begin("", None, b"x", QUERY) for _ in range(3)]
        with pytest.raises(Problem, match="3 jobs are waiting") as caught:
            table.begin("", None, b"x", QUERY)
        assert caught.value.status == 503
        async with asyncio.timeout(30):
            while held[0].state != "running":
                await held[0].changed.wait()
        assert [job.state for job in held] == ["running", "queued", "queued"]
        table.cancel(held[0])
        async with asyncio.timeout(30):
            while held[1].state != "running":
                await held[1].changed.wait()
        for job in held[1:]:
            table.cancel(job)
        assert ended == ["canceled"] * 3

    asyncio.run(scenario())


def test_old_results_make_room_for_new_ones() -> None:
    async def scenario() -> None:
        table, _ = jobs(bytes=100, kept=3, waiting=2)
        first = await done(table.begin("", None, bytes(60), QUERY))
        second = await done(table.begin("", None, bytes(30), QUERY))
        assert table.find(first.id, "") is first
        third = await done(table.begin("", None, bytes(60), QUERY))
        with pytest.raises(Problem) as caught:
            table.find(first.id, "")
        assert caught.value.kind == "gone"
        assert table.find(second.id, "") is second
        assert table.find(third.id, "") is third
        with pytest.raises(Problem, match="no room"):
            table.begin("", None, bytes(101), QUERY)

    asyncio.run(scenario())


def test_results_expire() -> None:
    async def scenario() -> None:
        table, _ = jobs(kept_s=0.05)
        job = await done(table.begin("", None, b"x", QUERY))
        async with asyncio.timeout(30):
            while job.id in table:
                await asyncio.sleep(0.01)
        with pytest.raises(Problem) as caught:
            table.find(job.id, "")
        assert caught.value.status == 410

    asyncio.run(scenario())


def test_jobs_belong_to_who_began_them() -> None:
    async def scenario() -> None:
        table, _ = jobs()
        job = await done(table.begin("ann", "key", b"x", QUERY))
        assert table.repeated("ann", "key", b"x", QUERY) is job
        assert table.repeated("bob", "key", b"x", QUERY) is None
        with pytest.raises(Problem) as caught:
            table.find(job.id, "bob")
        assert caught.value.status == 404

    asyncio.run(scenario())


def test_work_that_takes_too_long_fails() -> None:
    async def scenario() -> None:
        table, _ = jobs(hang, deadline_s=0.05)
        job = await done(table.begin("", None, b"x", QUERY))
        assert job.state == "failed"
        assert job.status("").error is not None
        assert job.problem is not None
        assert job.problem.status == 504

    asyncio.run(scenario())


def test_lost_replica_is_tried_again_and_a_bad_picture_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[bytes] = []

    async def unlucky(data: bytes, query: UpscaleQuery, progress: OnProgress) -> Answer:
        attempts.append(data)
        if data == b"bad":
            raise Problem("image-corrupt", "damaged")
        if len(attempts) < 3:
            raise Problem("starting", "the replica is gone")
        return answer(data)

    async def scenario() -> None:
        monkeypatch.setattr("ray_sr.serving.jobs.RETRY_AFTER_S", 0.01)
        table, _ = jobs(unlucky)
        job = await done(table.begin("", None, b"good", QUERY))
        assert (job.state, attempts) == ("succeeded", [b"good"] * 3)
        job = await done(table.begin("", None, b"bad", QUERY))
        assert (job.state, attempts[3:]) == ("failed", [b"bad"])

    asyncio.run(scenario())
