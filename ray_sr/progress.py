"""Progress of long work on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from ray_sr.errors import visible

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts towards `total`. Use as a context manager."""

    def __init__(self, title: str, total: int, unit: str, *, quiet: bool = False, start: int = 0) -> None:
        self.title, self.total, self.unit, self.count = title, total, unit, start
        self.quiet = quiet
        self._began, self._first, self._last_line = time.monotonic(), start, 0.0
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(total=total, initial=start, desc=title, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int, note: str = "") -> None:
        """Set how much is done; `note` is shown behind it."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count - self.count)
        self.count = count
        now = time.monotonic()
        finished = count >= self.total
        if self._bar is None and not self.quiet and (finished or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            print(self._line(now - self._began, note), file=sys.stderr, flush=True)

    def restart(self, count: int) -> None:
        """Count the time from here: what came before was getting ready."""
        self.count = self._first = count
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.initial = self._bar.n = count
            self._bar.unpause()

    def expect(self, total: int) -> None:
        """Change the total, where it becomes known on the way."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def advance(self, note: str = "") -> None:
        self.update(self.count + 1, note)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self.quiet:
            tqdm.write(visible(text), file=sys.stderr)

    def _line(self, elapsed: float, note: str) -> str:
        rate = (self.count - self._first) / max(elapsed, 1e-9)
        left = f", {clock((self.total - self.count) / rate)} left" if rate > 0 and self.count < self.total else ""
        tail = f"  {note}" if note else ""
        return f"{self.title}: {self.count}/{self.total} {self.unit}, {clock(elapsed)}{left}{tail}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(title: str, unit: str, *, quiet: bool = False) -> Callable[[int, int, str], None]:
    """A function of (done, total, note) that shows Progress, from its first call on."""
    shown: list[Progress] = []

    def count(done: int, total: int, note: str) -> None:
        if not shown or done <= shown[0].count:
            shown[:] = [Progress(title, total, unit, quiet=quiet)]
        shown[0].update(done, note)

    return count
