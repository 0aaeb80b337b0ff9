"""Leave to work on a job ends in time, whatever becomes of its owner."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from ray.serve.exceptions import RayServeException

from ray_sr.serving.permits import Ask, Permission
from ray_sr.serving.schemas import Abandoned, Permit

LEASE_S = 1.0


def work_under(ask: Ask) -> float:
    """Seconds from the first question until the work has to stop."""

    async def run() -> float:
        permission = Permission(Permit("job", "run", LEASE_S), ask)
        begin, abandoned = time.monotonic(), threading.Event()
        await permission.begin()
        async with asyncio.timeout(20):
            await permission.watch(abandoned)
        assert abandoned.is_set()
        return time.monotonic() - begin

    return asyncio.run(run())


def test_work_begins_with_leave_only() -> None:
    async def refused(job: str, run: str) -> bool:
        return False

    async def silent(job: str, run: str) -> bool:
        await asyncio.Event().wait()
        return True

    for ask in (refused, silent):
        with pytest.raises(Abandoned):
            work_under(ask)


def test_answer_that_comes_late_holds_from_when_it_was_asked_for() -> None:
    asked = 0

    async def slow(job: str, run: str) -> bool:
        await asyncio.sleep(0.4 * LEASE_S)
        return True

    async def later(job: str, run: str) -> bool:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.Event().wait()
        return await slow(job, run)

    assert 0.45 * LEASE_S < work_under(later) < 0.8 * LEASE_S, "not 0.9: half a lease after the answer came"


def test_work_goes_on_while_the_owner_is_replaced_and_stops_when_it_is_not() -> None:
    asked: list[float] = []

    async def lost_for_a_while(job: str, run: str) -> bool:
        asked.append(time.monotonic())
        since = asked[-1] - asked[0]
        if 0.1 < since < 0.35 * LEASE_S:
            raise RayServeException
        return since < LEASE_S

    assert LEASE_S <= work_under(lost_for_a_while) < 1.5 * LEASE_S


def test_work_stops_as_soon_as_another_run_is_the_right_one() -> None:
    answers = iter([True, True, False])

    async def ask(job: str, run: str) -> bool:
        return next(answers)

    assert work_under(ask) < 0.5 * LEASE_S


def test_work_that_nobody_can_watch_any_more_stops() -> None:
    """An error that no Ray or Serve is known to raise: without a watch, two could work on one job."""

    async def run() -> None:
        answers = iter([True])

        async def ask(job: str, run: str) -> bool:
            for answer in answers:
                return answer
            raise KeyError("no deployment of this name")

        permission, abandoned = Permission(Permit("job", "run", LEASE_S), ask), threading.Event()
        await permission.begin()
        with pytest.raises(KeyError):
            await permission.watch(abandoned)
        assert abandoned.is_set()

    asyncio.run(run())
