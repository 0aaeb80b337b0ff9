"""Admission: how much may be under way at the same time. What does not fit is refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_sr.serving.problems import Problem


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


@dataclass
class Pace:
    """How much is done a second while there is work; what was done long ago counts less and less.

    Used from one event loop only. `clock` gives seconds.
    """

    clock: Callable[[], float] = time.monotonic
    half_life_s: float = 30.0
    _done: float = field(default=0.0, init=False)
    _busy_s: float = field(default=0.0, init=False)
    _under_way: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    @property
    def rate(self) -> float | None:
        """Units a second; None until something was done."""
        return self._done / self._busy_s if self._done and self._busy_s else None

    @contextmanager
    def work(self, amount: int) -> Iterator[None]:
        """Work under way for the block, done at its end unless an error ends it."""
        self._advance()
        self._under_way += 1
        done = 0
        try:
            yield
            done = amount
        finally:
            self._advance()
            self._under_way -= 1
            self._done += done

    def _advance(self) -> None:
        now = self.clock()
        if self._under_way:
            elapsed = now - self._since
            fading = 0.5 ** (elapsed / self.half_life_s)
            self._done, self._busy_s = self._done * fading, self._busy_s * fading + elapsed
        self._since = now
