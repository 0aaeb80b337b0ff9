"""A lock whose holders come in the order in which they asked, and can let the next one go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """First come, first served, between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._serving = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the lock for the block."""
        self._wait()
        try:
            yield
        finally:
            self._leave()

    def pass_on(self) -> None:
        """Inside a turn: goes to the end of the queue, where there is one."""
        if self._next > self._serving + 1:
            self._leave()
            self._wait()

    def _wait(self) -> None:
        with self._changed:
            ticket = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def _leave(self) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()
