"""The process that a command runs in: its standard streams, and the signals that end it."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from typing import NoReturn

from ray_sr.signals import answer_signals

_closed: set[int] = set()


def was_closed(descriptor: int) -> bool:
    """Whether the command was started with this standard stream closed, as `>&-` does."""
    return descriptor in _closed


def open_standard_streams() -> None:
    """Let closed ones be /dev/null: a file that is opened later would else take their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        is_open = _is_open(descriptor)
        if is_open and getattr(sys, name) is not None:
            continue
        _closed.add(descriptor)
        if not is_open:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def _is_open(descriptor: int) -> bool:
    """Whether it can be read, or written; a shell's script may have come to lie where a stream was closed."""
    try:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return False
    return mode != (os.O_WRONLY if descriptor == 0 else os.O_RDONLY)


def end_by_exception() -> None:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that nothing half-written stays. Not where they are
    ignored, as by nohup. To be called again after `ray.init`, which takes SIGTERM for itself."""

    def hear() -> NoReturn:
        raise KeyboardInterrupt

    answer_signals(hear, [signal.SIGTERM, signal.SIGHUP])
