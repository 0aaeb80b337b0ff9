"""The signals that ask a command to end: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_CODE = 130  # as shells have it for Ctrl-C


def answer_signals(answer: Callable[[], object], numbers: Sequence[signal.Signals] = ENDING) -> Callable[[], None]:
    """From now on these signals call `answer`. Returns what puts the former handlers back.

    SIGTERM and SIGHUP that are ignored, as by nohup, stay ignored. Handlers belong to the main thread: in any other
    one, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = {
        number: signal.signal(number, lambda *_: answer())
        for number in numbers
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


@contextmanager
def ending_gently(begin: Callable[[], object]) -> Iterator[None]:
    """While the block runs, the first of the signals calls `begin`; a second one ends the process at once."""
    asked = False

    def answer() -> None:
        nonlocal asked
        if asked:
            os._exit(_EXIT_CODE)
        asked = True
        begin()

    restore = answer_signals(answer)
    try:
        yield
    finally:
        restore()
