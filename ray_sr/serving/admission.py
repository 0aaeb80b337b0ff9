"""Admission: how much may be under way at the same time. What does not fit is refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_sr.serving.problems import RETRY_AFTER_S, Problem


@dataclass
class Lease:
    """What one request has taken from a budget so far."""

    budget: Budget
    held: int = 0

    def add(self, amount: int) -> None:
        """Takes more. Raises Problem (overloaded) where the service is full."""
        if self.budget.taken + amount > self.budget.capacity:
            raise Problem("overloaded", f"too many {self.budget.unit} under way; try again later")
        self.budget.taken += amount
        self.held += amount


@dataclass
class Budget:
    """A shared amount, e.g. of pixels. Used from one event loop only, hence without a lock."""

    capacity: int
    unit: str
    taken: int = field(default=0, init=False)

    @contextmanager
    def lease(self, amount: int = 0) -> Iterator[Lease]:
        """A share that is given back at the end of the block."""
        lease = Lease(self)
        try:
            lease.add(amount)
            yield lease
        finally:
            self.taken -= lease.held


_EACH = 1 << 16  # what a picture takes beside its pixels, counted in pixels
_KEPT = 0.9  # of the weight of what was done, each time that another is done


@dataclass
class AdmissionQueue:
    """The pictures under way to one model. Who would wait longer than `longest_s` is refused.

    The wait is predicted from those that are done: while one is under way, all that was there when it came is done
    (Little's law), however many replicas work side by side. The last few count most. As many as the replicas
    take at once are never refused. `clock` gives seconds. Used from one event loop only.
    """

    longest_s: float
    at_once: int
    clock: Callable[[], float] = time.monotonic
    waiting: int = field(default=0, init=False)
    _load: int = field(default=0, init=False)
    _done: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)

    @property
    def wait_s(self) -> float:
        """How long all that is under way takes; 0 while nothing is known."""
        return self._load * self._seconds / self._done if self._done else 0.0

    @contextmanager
    def place(self, pixels: int) -> Iterator[None]:
        """A picture under way for the block. Raises Problem (overloaded) where the queue is too long."""
        over = self.wait_s - self.longest_s
        if over > 0 and self.waiting >= self.at_once:
            detail = "the queue is too long to be served in time; try again later"
            raise Problem("overloaded", detail, retry_after=max(RETRY_AFTER_S, round(over)))
        load = pixels + _EACH
        self._load += load
        self.waiting += 1
        before, begin = self._load, self.clock()
        try:
            yield
            self._done = _KEPT * self._done + before
            self._seconds = _KEPT * self._seconds + self.clock() - begin
        finally:
            self._load -= load
            self.waiting -= 1
