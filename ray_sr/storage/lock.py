"""A lock between processes by a file, on local folders and NFS. It ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from ray_sr.errors import ResourceError
from ray_sr.storage.filesystem import first_line

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
PATIENCE = 120.0  # seconds; a publisher holds the lock for as long as it writes one model


def has_locks(path: str) -> bool:
    """Whether the filesystem of this file, which is made, has locks. Raises ResourceError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {first_line(error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS  # somebody else has it: a lock, all the same
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def locked(path: str, what: str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of this file, which is made, for the block. `what` it guards is named in errors.

    Raises ResourceError where it cannot be had within PATIENCE seconds. Without `wait` it does at once, and a
    filesystem that has no locks counts as free.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise ResourceError(f"cannot write {what}: {first_line(error)}") from None
    try:
        if not _has_lock(descriptor, what, PATIENCE if wait else 0):
            waited = f" for {PATIENCE:.0f} s: see whether it hangs" if wait else ": wait for its end"
            raise ResourceError(f"{what} is in use by another process{waited}")
        yield
    finally:
        os.close(descriptor)  # gives the lock back, as the end of the process would


def _has_lock(descriptor: int, what: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if patience == 0 and error.errno in _NO_LOCKS:
                return True
            raise ResourceError(f"cannot lock {what}: {first_line(error)}") from None
