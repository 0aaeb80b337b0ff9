"""Files on any filesystem that pyarrow opens (a folder, s3://, gs://, hdfs://), written whole or not."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from ray_sr.errors import InputError, ResourceError


def open_filesystem(uri: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI or local path, and the path inside it; InputError for unknown schemes."""
    text = os.fspath(uri)
    try:
        if "://" in text:
            return pafs.FileSystem.from_uri(text)
        return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{text}: cannot open this storage: {first_line(error)}") from None


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def make_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Create a folder and its parents; raises ResourceError where that is not allowed."""
    try:
        filesystem.create_dir(path, recursive=True)
    except (OSError, pa.ArrowException) as error:
        raise ResourceError(f"{path}: cannot make this folder: {first_line(error)}") from None


def write_file(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write the whole file or nothing: under a temporary name, then renamed into place."""
    aside = temporary_name(path)
    try:
        with filesystem.open_output_stream(aside) as stream:
            stream.write(data)
        filesystem.move(aside, path)
    except (OSError, pa.ArrowException) as error:
        remove_quietly(filesystem, aside)
        raise ResourceError(f"{path}: cannot write: {first_line(error)}") from None


def read_file(filesystem: pafs.FileSystem, path: str) -> bytes:
    """The bytes of a file. Raises OSError as pyarrow gives it."""
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def temporary_name(path: str) -> str:
    """A hidden name in the same folder, so that the rename stays on one filesystem."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"


def remove_quietly(filesystem: pafs.FileSystem, path: str) -> None:
    """Remove a leftover on the way out of an error that is the one to report."""
    try:
        filesystem.delete_file(path)
    except (OSError, pa.ArrowException):
        return


def first_line(error: BaseException) -> str:
    """What the error says, in one line: the system's own words where pyarrow wraps them."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    system = re.search(r"Detail: \[errno \d+\] (.+)", text)
    return system[1] if system else text.splitlines()[0]
