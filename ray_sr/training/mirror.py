"""A run in a bucket: this process keeps its small files in a folder too, where they can be appended to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pyarrow as pa
from pyarrow import fs as pafs

from ray_sr.errors import InputError, ResourceError
from ray_sr.storage import first_line, make_folder, open_filesystem, read_file, write_file

CHECKPOINTS = "checkpoint_"  # what Ray Train keeps there: folders of this prefix and a note beside them


@dataclass
class Mirror:
    """The files of a URI and of a folder that stands for it; all but the checkpoints, which workers write there.

    The folder is this object's alone and ends with it: a report that reads a run leaves its training undisturbed.
    """

    uri: str
    folder: Path
    _parent: TemporaryDirectory[str]
    _pushed: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, uri: str) -> Mirror:
        """An empty mirror among the machine's temporary files."""
        uri = uri.rstrip("/")
        parent = TemporaryDirectory(prefix="ray-sr-run-")
        folder = Path(parent.name, PurePosixPath(uri).name)
        folder.mkdir()
        return cls(uri, folder, parent)

    def storage(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.uri)

    def pull(self) -> None:
        """Bring what the URI has now to the folder. Raises InputError where that cannot be read."""
        filesystem, root = self.storage()
        try:
            selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
            for info in filesystem.get_file_info(selector):
                name = PurePosixPath(info.path).relative_to(PurePosixPath(root))
                if info.type == pafs.FileType.File and not name.parts[0].startswith(CHECKPOINTS):
                    target = self.folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(read_file(filesystem, info.path))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.uri}: cannot read: {first_line(error)}") from None
        self._pushed = self._files()

    def push(self) -> None:
        """Bring to the URI what has changed in the folder since. ResourceError where it cannot be written."""
        now = self._files()
        filesystem, root = self.storage()
        for name in (name for name, state in now.items() if self._pushed.get(name) != state):
            make_folder(filesystem, f"{root}/{name}".rpartition("/")[0])
            write_file(filesystem, f"{root}/{name}", (self.folder / name).read_bytes())
        for name in self._pushed.keys() - now.keys():
            try:
                filesystem.delete_file(f"{root}/{name}")
            except (OSError, pa.ArrowException) as error:
                raise ResourceError(f"{self.uri}/{name}: cannot delete: {first_line(error)}") from None
        self._pushed = now

    def fetch(self, name: str) -> Path:
        """A copy of a file of the URI. Raises OSError as pyarrow gives it."""
        target = self.folder / name
        filesystem, root = self.storage()
        data = read_file(filesystem, f"{root}/{name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def _files(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file here."""
        found = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(CHECKPOINTS)]
            for name in names:
                if not name.startswith((CHECKPOINTS, ".")) and not name.endswith(".tmp"):
                    path = Path(parent, name)
                    stat = path.stat()
                    found[path.relative_to(self.folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        return found
