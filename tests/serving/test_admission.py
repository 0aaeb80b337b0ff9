"""Admission: what is taken is given back, whatever happens."""

from __future__ import annotations

import heapq
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from ray_sr.serving.admission import AdmissionQueue, Budget
from ray_sr.serving.problems import Problem


def test_never_more_than_the_capacity_and_nothing_stays_taken() -> None:
    random = np.random.default_rng(3)
    budget = Budget(100, "pixels")
    served = 0
    for _ in range(200):
        with suppress(Problem), budget.lease(int(random.integers(0, 80))) as one, budget.lease() as two:
            one.add(int(random.integers(0, 40)))
            two.add(int(random.integers(0, 40)))
            assert budget.taken == one.held + two.held <= 100
            served += 1
        assert budget.taken == 0
    assert 0 < served < 200


def test_refused_share_leaves_the_others_alone() -> None:
    budget = Budget(10, "bytes")
    with budget.lease(6) as lease:
        with pytest.raises(Problem, match="bytes"), budget.lease(5):
            pytest.fail("5 do not fit beside 6")
        lease.add(4)
        assert budget.taken == 10


def test_errors_inside_give_back() -> None:
    budget = Budget(10, "bytes")
    with pytest.raises(KeyError), budget.lease(6):
        raise KeyError
    assert budget.taken == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Replicas:
    """Some replicas that take pictures from one queue in their order, in made-up time."""

    def __init__(self, line: AdmissionQueue, clock: Clock, replicas: int, seconds_per_pixel: float) -> None:
        self.line, self.clock, self.seconds_per_pixel = line, clock, seconds_per_pixel
        self.free_at = [0.0] * replicas
        self.under_way: list[tuple[float, int, ExitStack]] = []
        self.waits: list[float] = []
        self.refused = 0

    def send(self, at: float, pixels: int) -> None:
        self._until(at)
        place = ExitStack()
        try:
            place.enter_context(self.line.place(pixels))
        except Problem as problem:
            self.refused += problem.kind == "overloaded"
            return
        begin = max(at, heapq.heappop(self.free_at))
        end = begin + pixels * self.seconds_per_pixel
        heapq.heappush(self.free_at, end)
        heapq.heappush(self.under_way, (end, len(self.waits), place))
        self.waits.append(begin - at)

    def _until(self, time: float) -> None:
        while self.under_way and self.under_way[0][0] <= time:
            end, _, place = heapq.heappop(self.under_way)
            self.clock.now = end
            place.close()
        self.clock.now = time


@pytest.mark.parametrize("replicas", [1, 4])
def test_overload_keeps_the_replicas_busy_and_the_wait_short(replicas: int) -> None:
    clock, random = Clock(), np.random.default_rng(5)
    service = Replicas(AdmissionQueue(20, at_once=4, clock=clock), clock, replicas, 1e-6)
    offered = 2.0 * replicas  # twice what can be done
    at = 0.0
    while at < 600:
        at += random.exponential(1 / offered)
        service.send(at, int(random.uniform(0.5e6, 1.5e6)))
    busy = len(service.waits) / (600 * replicas)
    assert busy > 0.95
    assert np.quantile(service.waits, 0.99) < 1.5 * 20
    assert np.quantile(service.waits[len(service.waits) // 2 :], 0.01) > 0.5 * 20
    assert service.refused == pytest.approx(600 * replicas, rel=0.2)


def test_what_can_be_done_in_time_is_not_refused() -> None:
    clock, random = Clock(), np.random.default_rng(6)
    service = Replicas(AdmissionQueue(20, at_once=4, clock=clock), clock, replicas=1, seconds_per_pixel=1e-6)
    at = 0.0
    while at < 2000:
        at += random.exponential(1 / 0.7)
        service.send(at, int(random.uniform(0.5e6, 1.5e6)))
    assert not service.refused


def test_thumbnails_do_not_make_the_service_look_slow() -> None:
    clock = Clock()
    line = AdmissionQueue(20, at_once=1, clock=clock)
    for _ in range(1000):
        with line.place(16):
            clock.now += 0.03
    with line.place(4_000_000), line.place(4_000_000):
        assert line.wait_s < 10


def test_what_the_replicas_take_at_once_is_never_refused() -> None:
    clock = Clock()
    line = AdmissionQueue(20, at_once=2, clock=clock)
    with line.place(1_000_000):
        clock.now += 1000  # a slow one
    with line.place(1_000_000), line.place(1_000_000):
        assert line.wait_s > 1000
        with pytest.raises(Problem) as refusal:
            line.place(1).__enter__()
        assert int(refusal.value.headers["Retry-After"]) > 1000
    assert line.waiting == 0


def test_only_what_is_done_counts() -> None:
    clock = Clock()
    line = AdmissionQueue(20, at_once=1, clock=clock)
    with suppress(KeyError), line.place(100):
        clock.now += 500
        raise KeyError
    with line.place(100):
        assert line.wait_s == 0
