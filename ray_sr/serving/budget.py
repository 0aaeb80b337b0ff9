"""Admission: how much may be under way at the same time. What does not fit is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
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
