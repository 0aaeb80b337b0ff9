"""One way to fetch a file by HTTP: gone on with after a break, checked by its hash, safe among processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ray_sr.errors import InputError, ResourceError
from ray_sr.storage.filesystem import first_line

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_SECONDS = 60.0
OnBytes = Callable[[int, int], None]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], str | None] = lambda part: None,
    attempts: int = ATTEMPTS,
    timeout_s: float = TIMEOUT_SECONDS,
    progress: OnBytes = lambda done, total: None,
) -> None:
    """Fetch `url` to `path`, by way of `path`.part that a later call goes on with; nothing where `path` exists.

    Broken connections are taken up again until `attempts` of them brought no new byte; `timeout_s` without an
    answer or data breaks one. `sha256`: its digits, or how they begin. `check` says what is wrong with the whole
    file, if anything is. `progress` hears bytes done and bytes in all. Where several processes fetch the same
    file, one does and the others wait. Raises InputError where the server refuses or the bytes are not those
    expected, which are then removed, and ResourceError where they cannot be written.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path.with_name(path.name + ".part"), path) as file:
            if file is None:
                return  # another process has brought it
            try:
                _fetch(url, file, attempts, timeout_s, progress)
            finally:
                if _size(file) == 0:
                    os.unlink(file.name)
            _verify(url, file, sha256, check)
            os.fsync(file.fileno())
            os.replace(file.name, path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {first_line(error)}") from None


@contextlib.contextmanager
def _held(part: Path, path: Path) -> Iterator[BinaryIO | None]:
    """The partial file, locked against other processes; None where the whole one is there by then."""
    while True:
        with part.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if path.exists():
                if _is_at(file, part) and _size(file) == 0:
                    part.unlink()
                yield None
                return
            if _is_at(file, part):
                yield file
                return
        # The process that had the lock removed what it had: begin anew.


def _is_at(file: BinaryIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _fetch(url: str, file: BinaryIO, attempts: int, timeout_s: float, progress: OnBytes) -> None:
    """Fill the file, over as many connections as it takes."""
    failures = 0
    while True:
        before = _size(file)
        try:
            total = _fetch_some(url, file, timeout_s, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise InputError(f"{url}: the server says {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = first_line(error)
        else:
            if _size(file) == total:
                return
            reason = f"the connection ended at {_size(file)} of {total} bytes"
        failures = 0 if _size(file) > before else failures + 1
        if failures >= attempts:
            raise InputError(f"{url}: {reason}: run the command again, it goes on from here")
        time.sleep(min(10.0, 0.1 * 2**failures))


def _fetch_some(url: str, file: BinaryIO, timeout_s: float, progress: OnBytes) -> int:
    """Append what one connection gives; returns the size of the whole file."""
    have = _size(file)
    headers = {"User-Agent": "ray-sr", **({"Range": f"bytes={have}-"} if have else {})}
    opener = urllib.request.build_opener()  # unlike urlopen's, it reads the proxy settings of this moment
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or another file: what is there decides
            return _whole_size(error.headers.get("Content-Range", ""), file)
        raise
    with answer:
        if answer.status != 206:
            file.truncate(have := 0)
        total = have + int(answer.headers.get("Content-Length", 0))
        check_room(Path(file.name).parent, total - have)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            file.flush()
            have += len(chunk)
            progress(have, max(total, have))
    return max(total, have) if answer.headers.get("Content-Length") else have


def _whole_size(content_range: str, file: BinaryIO) -> int:
    total = content_range.rpartition("/")[2]
    if total.isdigit() and int(total) == _size(file):
        return _size(file)
    file.truncate(0)  # longer than the server's file: begin anew
    return int(total) if total.isdigit() else -1


def check_room(folder: Path, needed: int) -> None:
    """Raises ResourceError where the disk of this folder has not so many bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _verify(url: str, file: BinaryIO, sha256: str | None, check: Callable[[Path], str | None]) -> None:
    wrong = None
    if sha256:
        with open(file.name, "rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if not found.startswith(sha256):
            wrong = f"SHA-256 is {found}, not {sha256}{'…' if len(sha256) < 64 else ''}: the file was removed"
    if wrong := wrong or check(Path(file.name)):
        os.unlink(file.name)
        raise InputError(f"{url}: {wrong}")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
