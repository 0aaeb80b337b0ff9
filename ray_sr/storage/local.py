"""Files are written under a hidden name beside their place and renamed; what killed processes left is removed.

Each hidden file is locked as long as its process works on it, so that nobody takes it for a leftover.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"\.[0-9a-f]{16}\.part")


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str], mode: int = 0o666, *, flush: bool = True) -> Iterator[Path]:
    """A hidden file, made with this mode, to write to. It takes the place of `path` after the block.

    A reader sees the old file or the whole new one; with `flush` also after the machine lost its power. A block
    that fails leaves the old one. Raises OSError.
    """
    target = Path(os.fsdecode(path))
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        _is_locked(descriptor)
        yield aside
        if flush:
            os.fsync(descriptor)
        os.replace(aside, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        os.close(descriptor)


def atomic_write(path: str | os.PathLike[str], data: bytes, mode: int = 0o666) -> None:
    """Writes a file whole or not at all (see `written_aside`). Raises OSError."""
    with written_aside(path, mode) as aside:
        aside.write_bytes(data)


def why_absent(path: str | os.PathLike[str]) -> str:
    """Why nothing is found at a path: there is nothing, or it cannot be looked for."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return error.strerror or str(error)
    except ValueError:  # a name that no file can have
        pass
    return "no such file or folder"


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left in this folder; where there are no locks, nothing is."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]:
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if _is_locked(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Lock it, if nobody has and the filesystem can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
