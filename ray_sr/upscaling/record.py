"""What tells results from photos: a record in the folder of the results, and a mark inside of each file.

A second run with another scale or format must not enlarge the results of the first, and a watched folder must
not do a photo twice. The record is a hidden file of JSON lines, one for each result, appended after the result
has its name: a run that is killed in between leaves a whole result without its line. The mark is a property in
the file's XMP (ISO 16684-1), which travels with it to other folders.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.errors import ResourceError

RECORD = ".ray-sr-results.jsonl"
MARK = b"raysr:EnlargedBy"

_SEEN_BYTES = 64 << 10  # of the head and of the tail of a file: XMP is in one of them
_MOST_XMP = 60_000  # a JPEG segment holds 65,503 bytes; a longer packet is left as it is
_PROPERTY = (
    b'<rdf:Description rdf:about="" xmlns:raysr="urn:ray-sr:xmp:1.0" ' + MARK + b'="ray-sr"></rdf:Description>'
)
_PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b"</rdf:RDF></x:xmpmeta>"
)
_END = b"</rdf:RDF>"


def mark_xmp(xmp: bytes | None) -> bytes | None:
    """The XMP packet, a new one for None, that says its picture is a result.

    A packet that is not UTF-8 or would not fit into a JPEG afterwards stays as it is.
    """
    packet = _PACKET if xmp is None else xmp
    before, end, after = packet.rpartition(_END)
    if MARK in packet or not end or len(packet) > _MOST_XMP:
        return xmp
    return before + _PROPERTY + end + after


def is_marked(path: Path) -> bool:
    """Whether the picture file itself says that it is a result. False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(_SEEN_BYTES)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(len(head), size - _SEEN_BYTES))
            return MARK in head or MARK in file.read(_SEEN_BYTES)
    except OSError:
        return False


@dataclass(frozen=True)
class FileState:
    """What a file is recognised by without being read: its size in bytes and its time in nanoseconds."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileState | None:
        """None where there is no such file."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class _Noted:
    """A result, and the photo that it was made of, as a real path."""

    result: FileState
    owner: str
    source: FileState


class ResultRecord:
    """The results in one folder. Reads the file when it is made; lines that are cut short count for nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._results: dict[str, _Noted] = {}
        try:
            data = self._path.read_bytes()
        except OSError:
            data = b""
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            self._take(line)

    def holds(self, path: Path) -> bool:
        """Whether this file of the folder is a result, unchanged since it was written."""
        known = self._results.get(path.name)
        return known is not None and known.result == FileState.of(path)

    def owner(self, name: str) -> str | None:
        """The photo, as a real path, whose result has this name."""
        known = self._results.get(name)
        return None if known is None else known.owner

    def has_done(self, source: Path, name: str) -> bool:
        """Whether the photo, as it is now, has had its result of this name in this folder."""
        known = self._results.get(name)
        if known is None or known.owner != os.path.realpath(source):
            return False
        return known.source == FileState.of(source)

    def add(self, target: Path, source: Path, state: FileState) -> None:
        """Appends a line: `target`, which is there, is the result of `source` as it was in this state.

        Raises ResourceError where the record cannot be written.
        """
        result = FileState.of(target)
        if result is None:
            return
        fields = {
            "result": target.name,
            "size": result.size,
            "mtime_ns": result.mtime_ns,
            "source": os.path.realpath(source),
            "source_size": state.size,
            "source_mtime_ns": state.mtime_ns,
        }
        line = json.dumps(fields).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                file.write((b"\n" if self._torn else b"") + line + b"\n")
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written ({error.strerror or error})") from None
        self._torn = False
        self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            fields: dict[str, Any] = json.loads(line)
            result = FileState(fields["size"], fields["mtime_ns"])
            source = FileState(fields["source_size"], fields["source_mtime_ns"])
            name, owner = str(fields["result"]), str(fields["source"])
        except (ValueError, KeyError, TypeError):
            return
        self._results[name] = _Noted(result, owner, source)


class ResultRecords:
    """The records of all folders, each read once, and each file looked into once."""

    def __init__(self) -> None:
        self._folders: dict[Path, ResultRecord] = {}
        self._marked: dict[Path, tuple[FileState | None, bool]] = {}

    def of(self, folder: Path) -> ResultRecord:
        if folder not in self._folders:
            self._folders[folder] = ResultRecord(folder)
        return self._folders[folder]

    def is_result(self, path: Path) -> bool:
        """Whether a file in a folder is the result of an earlier run."""
        if self.of(path.parent).holds(path):
            return True
        state = FileState.of(path)
        if path not in self._marked or self._marked[path][0] != state:
            self._marked[path] = state, is_marked(path)
        return self._marked[path][1]
