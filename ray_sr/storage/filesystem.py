"""Files on any filesystem that pyarrow or fsspec opens (a folder, s3://, gs://, https://), written whole or not."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from ray_sr.errors import InputError, RecipeError, ResourceError, printable

STORAGE = "RAY_SR_STORAGE"
DEFAULT_STORE = "~/.ray-sr/models"

_ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "mock")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or a role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or `az login`",
    "abfss": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or `az login`",
    "hf": "HF_TOKEN, or `hf auth login`",
    "http": "user:password@ in the address",
    "https": "user:password@ in the address",
}
_REFUSED = re.compile(r"ACCESS_DENIED|Forbidden|Unauthorized|40[13]|credential|permission|Anonymous", re.IGNORECASE)


def resolve_location(name: str | os.PathLike[str]) -> str:
    """Where shards, a run, a sweep or the model store lie: a URI or an absolute path.

    A relative name lies below $RAY_SR_STORAGE (a folder, NFS share or bucket), else below the current folder.
    RecipeError inside a Ray job without RAY_SR_STORAGE: its current folder goes when it ends.
    """
    text = os.fspath(name)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RecipeError(f"{printable(text)}: a name that is not UTF-8: give another")
    if "://" in text:
        return text
    path, root = Path(text).expanduser(), os.environ.get(STORAGE)
    if path.is_absolute():
        return str(path)
    if root:
        return f"{root.rstrip('/')}/{path.as_posix()}" if "://" in root else str(Path(root).expanduser() / path)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise RecipeError(
            f"{text}: the folder of a job goes with it: give an absolute path or URI that all nodes reach, or "
            f"set {STORAGE} to the folder or bucket that such names lie below"
        )
    return str(path.absolute())


def store_root() -> str:
    """Where the model store is unless somebody says otherwise."""
    if store := os.environ.get("RAY_SR_STORE"):
        return store
    return resolve_location("models") if STORAGE in os.environ else DEFAULT_STORE


def open_filesystem(uri: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI or local path, and the path inside it; InputError for unknown schemes."""
    text = os.fspath(uri)
    try:
        if "://" in text:
            return _of_uri(text)
        return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    except (pa.ArrowException, ValueError, OSError, ImportError) as error:
        raise InputError(f"{text}: cannot open this storage: {first_line(error)}") from None


def _of_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """What pyarrow opens itself, else what fsspec does (http, https, hf, abfs and more)."""
    scheme = uri.partition("://")[0].lower()
    if scheme in _ARROW_SCHEMES or scheme.startswith("fsspec+"):
        return pafs.FileSystem.from_uri(uri)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def access_error(place: str, error: BaseException) -> str:
    """One line for a place that cannot be read; where access is refused, it names the credentials."""
    scheme = place.partition("://")[0].lower()
    if scheme in _CREDENTIALS and _REFUSED.search(str(error)):
        return f"{place}: access refused: this needs credentials: {_CREDENTIALS[scheme]} ({first_line(error)})"
    return f"{place}: cannot read: {first_line(error)}"


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def make_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Create a folder and its parents; raises ResourceError where that is not allowed."""
    try:
        filesystem.create_dir(path, recursive=True)
    except (OSError, pa.ArrowException) as error:
        raise ResourceError(f"{path}: cannot make this folder: {first_line(error)}") from None


def require_place(place: str) -> None:
    """Tries on this machine, at once, whether a folder could be made and written into; URIs are left to their time.

    It leaves nothing behind. Raises ResourceError.
    """
    if "://" in place:
        return
    there = Path(place).expanduser()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        os.rmdir(tempfile.mkdtemp(prefix=".ray-sr-", dir=there))
    except OSError as error:
        raise ResourceError(f"{place}: cannot make this folder: {first_line(error)}") from None


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
    text = str(getattr(error, "strerror", None) or str(error).strip() or type(error).__name__)
    system = re.search(r"Detail: \[errno \d+\] (.+)", text)
    return system[1] if system else text.splitlines()[0]
