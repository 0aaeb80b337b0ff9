"""A lock between processes by a file, on local folders and NFS. It ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from ray_sr.errors import ResourceError
from ray_sr.storage import first_line

PATIENCE = 120.0  # seconds; a publisher holds the lock for as long as it writes one model


@contextlib.contextmanager
def locked(path: str, what: str) -> Iterator[None]:
    """Holds the lock of this file, which is made, for the block. `what` it guards is named in errors.

    Raises ResourceError where it cannot be had.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise ResourceError(f"cannot write {what}: {first_line(error)}") from None
    try:
        _wait_for(descriptor, what)
        yield
    finally:
        os.close(descriptor)  # gives the lock back, as the end of the process would


def _wait_for(descriptor: int, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{what} is locked by another publisher for {PATIENCE:.0f} s: see whether it hangs"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            raise ResourceError(f"cannot lock {what}: {first_line(error)}") from None
