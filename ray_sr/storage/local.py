"""Files on this machine, whole or not at all: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """A new name in the same folder; the file that the block makes there takes the place of `path`.

    A reader sees the old file or the whole new one; with `flush` also after the machine lost its power. A block
    that fails leaves the old one. Raises OSError.
    """
    target = Path(os.fsdecode(path))
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield aside
        if flush:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes, mode: int = 0o666) -> None:
    """Writes a file whole or not at all (see `written_aside`), made with this `mode`. Raises OSError."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    with written_aside(path) as aside, open(aside, "xb", opener=opener) as file:
        file.write(data)
