"""The side folder of a clip under way: finished segments, and what they were made of and with.

A segment is written aside and renamed, its notes after it; a kill costs the segments under way. The folder stands
beside the result, hidden, and goes when the result is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.storage.local import atomic_write
from ray_sr.storage.lock import locked
from ray_sr.video.clip import Segment, SegmentNotes

_HASHED_BYTES = 1 << 20
_LOCK, _JOB = "lock", "job.json"


class Journal:
    """Segments of one result, made of one source with one set of choices."""

    def __init__(self, target: Path, made_with: dict[str, Any]) -> None:
        self.folder = target.with_name(f".{target.name}.segments")
        self._made_with: dict[str, Any] = json.loads(json.dumps(made_with))
        self._target = target

    @contextlib.contextmanager
    def open(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Makes the folder, or takes up what is in it, and holds it for the block.

        It goes again where the block ends in an error before anything is done. Raises RecipeError where an
        unfinished run is there that is not to be resumed, or was made otherwise, and ResourceError where another
        process is at work on it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be made ({error.strerror or error})") from None
        with locked(str(self.folder / _LOCK), f"the making of {self._target}", wait=False):
            self._check(resume, overwrite)
            try:
                self._clear(everything=overwrite and not resume)
                atomic_write(self.folder / _JOB, json.dumps(self._made_with).encode())
            except OSError as error:
                raise ResourceError(f"{self.folder}: cannot be written ({error.strerror or error})") from None
            try:
                yield
            finally:
                if not any(file.name not in (_LOCK, _JOB) and file.stat().st_size for file in self._files()):
                    self.remove()

    def _check(self, resume: bool, overwrite: bool) -> None:
        before = self._before()
        if before is None or (overwrite and not resume):
            return
        other = [name for name, value in self._made_with.items() if before.get(name) != value]
        if other:
            raise RecipeError(
                f"{self._target}: its unfinished run differs in {', '.join(other)}: give the same or --overwrite"
            )
        if not resume:
            raise RecipeError(
                f"{self._target}: an unfinished run is here: --resume goes on with it, --overwrite begins anew"
            )

    def _clear(self, everything: bool) -> None:
        """Removes what a kill left half-written, or everything."""
        for file in self._files():
            if file.name != _LOCK and (everything or file.suffix == ".part"):
                file.unlink()

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.exists() else []

    def _before(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _JOB).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else {}

    def path(self, segment: Segment) -> Path:
        """Where the segment lies when it is whole."""
        return self.folder / f"{segment.number:06d}.nut"

    def notes(self, segment: Segment) -> SegmentNotes | None:
        """Of a finished segment; None where it is not."""
        return SegmentNotes.read(self.path(segment).with_suffix(".json"))

    def remove(self) -> None:
        """The result is whole: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)


def note_segment(aside: Path, path: Path, notes: SegmentNotes) -> None:
    """Gives a finished segment its name, then its notes."""
    try:
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        atomic_write(path.with_suffix(".json"), json.dumps(asdict(notes)).encode())
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror or error})") from None


def fingerprint(path: Path) -> dict[str, Any]:
    """What a file is recognised by: its size and a hash of its beginning and end. Raises OSError."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, size - _HASHED_BYTES))
        digest.update(file.read(_HASHED_BYTES))
    return {"size": size, "sha256": digest.hexdigest()}
