"""Jobs in storage: a folder or bucket that every process of the service reaches, each file whole or not there.

records/ID.json   what the job is and how it ended; written when it is begun, taken up and ended
pictures/ID       the picture that was sent, until the job has ended
results/ID        the picture that it made
owner.json        which process owns the jobs: see `job_lease`
owner.lock        on a folder: who reads and writes that
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import ValidationError

from ray_sr.errors import ResourceError
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.options import ServiceOptions
from ray_sr.storage import STORAGE, first_line, open_filesystem, read_file, resolve_location, write_file
from ray_sr.storage.lock import has_locks, locked

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{10,64}")
_FOLDERS = ("records", "pictures", "results", "archives")
_PIECE = 1 << 20
_READERS = 16
_STRAY = timedelta(hours=1)  # after which a file that belongs to no job is deleted


def jobs_location(options: ServiceOptions, application: str) -> str:
    """Where the jobs lie: where the options say, else below RAY_SR_STORAGE or the user's folder."""
    if options.jobs:
        return resolve_location(options.jobs)
    root = resolve_location("jobs") if os.environ.get(STORAGE) else str(Path("~/.ray-sr/jobs").expanduser())
    return f"{root}/{application}"


class JobStorage:
    """The files of all jobs. Everything raises ResourceError, one line, where the storage fails."""

    def __init__(self, location: str) -> None:
        """Opens a folder or URI, and makes the folders in it. Raises InputError for an unknown scheme."""
        self.location = location
        self._filesystem, self._root = open_filesystem(location)
        with self._failures("make the folders of jobs"):
            for name in _FOLDERS:
                self._filesystem.create_dir(f"{self._root}/{name}", recursive=True)

    # ---------------------------------------------------------------------------- records

    def save(self, record: JobRecord) -> None:
        self._write(f"records/{record.id}.json", record.model_dump_json().encode())

    def load(self, id: str) -> JobRecord | None:
        """The record of a job; None where there is none."""
        if not _ID.fullmatch(id):
            return None
        text = self._read(f"records/{id}.json")
        return None if text is None else _record_of(id, text)

    def load_all(self) -> list[JobRecord]:
        """All records, the oldest first."""
        names = [info.base_name for info in self._list("records") if info.base_name.endswith(".json")]
        ids = [name.removesuffix(".json") for name in names if not name.startswith(".")]
        with ThreadPoolExecutor(_READERS) as threads:
            found = [record for record in threads.map(self.load, ids) if record is not None]
        return sorted(found, key=lambda record: record.created_at)

    def forget(self, id: str) -> None:
        """Deletes all files of a job; what is not there is no error."""
        for path in (f"records/{id}.json", f"pictures/{id}", f"results/{id}"):
            self._delete(path)

    # ---------------------------------------------------------------------------- pictures and results

    def write_picture(self, id: str, data: bytes) -> None:
        self._write(f"pictures/{id}", data)

    def read_picture(self, id: str) -> bytes | None:
        return self._read(f"pictures/{id}")

    def delete_picture(self, id: str) -> None:
        self._delete(f"pictures/{id}")

    def write_result(self, id: str, data: bytes) -> None:
        self._write(f"results/{id}", data)

    def open_result(self, id: str) -> pa.NativeFile | None:
        """The result, to be read and closed; None where there is none."""
        with self._failures("read the result of a job"):
            try:
                return self._filesystem.open_input_stream(f"{self._root}/results/{id}")
            except FileNotFoundError:
                return None

    def write_archive(self, token: str, content: bytes) -> None:
        self._write(f"archives/{token}", content)

    def read_archive(self, token: str) -> bytes | None:
        """What is in the ZIP of this token; None where there is none, or no more."""
        if not _ID.fullmatch(token):
            return None
        info = self._info(f"archives/{token}")
        is_late = info.mtime is not None and info.mtime < datetime.now(UTC) - _STRAY
        return None if is_late else self._read(f"archives/{token}")

    # ---------------------------------------------------------------------------- the owner

    @cached_property
    def _lock(self) -> str | None:
        path = f"{self._root}/owner.lock"
        is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        return path if is_local and has_locks(path) else None

    @property
    def has_locks(self) -> bool:
        """Whether a look at the owner and a write can be one step."""
        return self._lock is not None

    @contextmanager
    def owner_lock(self) -> Iterator[bool]:
        """Alone with the owner's file for the block; False where nobody can be, as in a bucket."""
        if self._lock is None:
            yield False
            return
        with locked(self._lock, f"the owner of the jobs in {self.location}"):
            yield True

    def read_owner(self) -> bytes | None:
        return self._read("owner.json")

    def write_owner(self, data: bytes) -> None:
        self._write("owner.json", data)

    def delete_owner(self) -> None:
        self._delete("owner.json")

    def sweep(self, known: Collection[str]) -> None:
        """Deletes pictures and results that belong to no job and are old: of processes that ended meanwhile."""
        oldest = datetime.now(UTC) - _STRAY
        for folder in ("pictures", "results", "archives"):
            for info in self._list(folder):
                is_known = info.base_name in known
                if not is_known and info.mtime is not None and info.mtime < oldest:
                    self._delete(f"{folder}/{info.base_name}")

    # ---------------------------------------------------------------------------- files

    def _write(self, path: str, data: bytes) -> None:
        write_file(self._filesystem, f"{self._root}/{path}", data)

    def _read(self, path: str) -> bytes | None:
        with self._failures(f"read {path}"):
            try:
                return read_file(self._filesystem, f"{self._root}/{path}")
            except FileNotFoundError:
                return None

    def _info(self, path: str) -> pafs.FileInfo:
        with self._failures(f"read {path}"):
            return self._filesystem.get_file_info(f"{self._root}/{path}")

    def _delete(self, path: str) -> None:
        with self._failures(f"delete {path}"):
            try:
                self._filesystem.delete_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        with self._failures(f"list {folder}"):
            return self._filesystem.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise ResourceError(f"{self.location}: cannot {what}: {first_line(error)}") from None


async def pieces_of(stream: pa.NativeFile) -> AsyncIterator[bytes]:
    """The bytes of an open result, which is closed at the end."""
    try:
        while piece := await asyncio.to_thread(stream.read, _PIECE):
            yield piece
    finally:
        stream.close()


def _record_of(id: str, text: bytes) -> JobRecord | None:
    try:
        return JobRecord.model_validate_json(text)
    except ValidationError as error:
        logger.error("the record of the job %s is left out: %s", id, error.errors()[0]["msg"])
        return None
