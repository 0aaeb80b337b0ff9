"""Finds photographs: folders, globs, files and Parquet data sets on any filesystem of pyarrow or fsspec."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ray_sr.data.manifest import MANIFEST, PHOTOS, SHARD_NAME
from ray_sr.errors import InputError
from ray_sr.images import OTHER_SUFFIXES, SUFFIXES
from ray_sr.storage import access_error, first_line, open_filesystem, read_file
from ray_sr.storage.local import why_absent

PARQUET = ".parquet"
# Folders that systems and photo managers make for themselves, with thumbnails or what was thrown away.
SYSTEM_FOLDERS = frozenset(
    ("@eaDir", "@__thumb", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information")
)
IMAGE_COLUMNS = ("image", "bytes", "img", "jpg", "png", "content", "data")
NAME_COLUMNS = ("name", "file_name", "filename", "path", "photo", "key", "__key__", "id")


@dataclass(frozen=True)
class PhotoFile:
    """A file that may be a photograph: `uri` opens it, `name` is for people, `size` is in bytes.

    A row of a Parquet file has the file's URI with #row. `partner` is the photo of the same name among the
    input photos, where there are such. `stamp` changes when the file is written anew; empty where the filesystem
    does not tell.
    """

    uri: str
    name: str
    size: int
    partner: PhotoFile | None = None
    stamp: str = ""


@dataclass(frozen=True)
class PassedOver:
    """What lies among photos and is not taken. `lost`: it may well be a photo that is meant to be."""

    path: str
    why: str
    lost: bool = True

    def __str__(self) -> str:
        return f"passed over: {self.path}: {self.why}"


Notes = list[PassedOver]


def find_photos(places: Sequence[str], passed_over: Notes | None = None) -> list[PhotoFile]:
    """Every file with a photo's suffix under these folders, globs, URIs and files, in a fixed order.

    A file named outright is taken whatever its suffix. Parquet files give a photo for each row: a column of
    encoded photos (binary, or a struct with `bytes`), named or alone. From folders come neither hidden files and
    folders, nor those that systems keep for thumbnails, nor shards of ray-sr; a folder that is reached twice by
    links counts once. What is not taken and may be missed is added to `passed_over`. Raises InputError for a place
    that does not exist, cannot be read or holds no photo.
    """
    passed_over = [] if passed_over is None else passed_over
    found: dict[str, PhotoFile] = {}
    for place in places:
        matched = [photo for file in _expand(place, passed_over) for photo in _photos_of(file)]
        if not matched:
            raise InputError(f"{place}: no photos here (looked for {', '.join(sorted(SUFFIXES))}, {PARQUET})")
        found.update((photo.uri, photo) for photo in matched)
    return sorted(found.values(), key=lambda photo: (photo.name, photo.uri))


def find_others(place: str) -> list[str]:
    """Paths of the files in a folder that no photo is read from, by their names; hidden ones and our own apart.

    Empty for what is no folder or cannot be listed, which `find_photos` tells.
    """
    if not _is_utf8(place) or glob.has_magic(place):
        return []
    filesystem, path = open_filesystem(place)
    try:
        if filesystem.get_file_info(path).type != pafs.FileType.Directory:
            return []
        infos = _infos(filesystem, path, [])
    except (OSError, pa.ArrowException):
        return []
    ours, found = _shard_folders(infos), []
    for info in infos:
        name = PurePosixPath(info.path).relative_to(path)
        told = any(_is_hidden(part) for part in name.parts) or info.path.rpartition("/")[0] in ours
        if not told and name.suffix.lower() not in (*SUFFIXES, PARQUET):
            found.append(info.path)
    return sorted(found)


def read_photo_bytes(photo: PhotoFile) -> bytes:
    """The encoded photo. Raises OSError as pyarrow gives it; cheapest for neighbouring rows of a Parquet file."""
    file, mark, row = photo.uri.rpartition(f"{PARQUET}#")
    if not mark or not row.isdigit():
        return read_file(*open_filesystem(photo.uri))
    uri, number = file + PARQUET, int(row)
    for group, (first, rows) in enumerate(_row_groups(uri)):
        if first <= number < first + rows:
            return _encoded_photos(uri, group)[number - first]
    raise OSError(f"no row {number} in this file any more")


def _expand(place: str, passed_over: Notes) -> list[PhotoFile]:
    if "://" in place:
        pattern = place.partition("?")[0]  # a question mark begins the options of a URI
        if not glob.has_magic(pattern):
            return _at(place, passed_over)
    elif not glob.has_magic(place) or Path(place).exists():
        return _at(place, passed_over)
    else:
        paths = sorted(glob.glob(place, recursive=True))
        return [photo for path in paths if _readable(path, passed_over) for photo in _at(path, passed_over)]
    folder = pattern.partition("*")[0].rpartition("/")[0] + place[len(pattern) :]
    found = _at(folder, passed_over)
    return [photo for photo in found if fnmatch.fnmatch(photo.uri.partition("?")[0], pattern)]


def _at(place: str, passed_over: Notes) -> list[PhotoFile]:
    if not _is_utf8(place):
        raise InputError(f"{_shown(place)}: a name that is not UTF-8: rename it")
    filesystem, path = open_filesystem(place)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [_photo_file(place, info, PurePosixPath(path).name)]
        if info.type == pafs.FileType.Directory:
            base = PurePosixPath(path)
            infos = _infos(filesystem, path, passed_over)
            ours = _shard_folders(infos)
            names = ((info, PurePosixPath(info.path).relative_to(base)) for info in infos)
            return [
                _photo_file(place, info, str(name))
                for info, name in names
                if _is_taken(info, name, ours, passed_over)
            ]
    except (OSError, pa.ArrowException) as error:
        raise InputError(access_error(place, error)) from None
    raise InputError(f"{place}: {why_absent(place)}")


def _infos(filesystem: pafs.FileSystem, folder: str, passed_over: Notes) -> list[pafs.FileInfo]:
    """All files below a folder."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        infos = filesystem.get_file_info(list(_local_files(folder, passed_over)))
    else:
        infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    return [info for info in infos if info.type == pafs.FileType.File]


def _local_files(folder: str, passed_over: Notes) -> Iterator[str]:
    """Paths of the files below a folder. Links are followed, but to no folder that was or will be seen without."""
    waiting, seen = [folder], set()
    links: list[str] = []
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(here, passed_over, must=here == folder):
            if not entry.is_dir():
                yield entry.path
            else:
                (links if entry.is_symlink() else waiting).append(entry.path)


def _entries(folder: str, passed_over: Notes, must: bool) -> list[os.DirEntry[str]]:
    """What a folder holds for us; OSError where it cannot be looked into and `must` be."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if must:
            raise
        passed_over.append(PassedOver(folder, f"cannot be read: {first_line(error)}"))
        return []
    return [entry for entry in found if not _is_hidden(entry.name) and _readable(entry.path, passed_over)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _readable(path: str, passed_over: Notes) -> bool:
    """Whether there is something that has a name for pyarrow."""
    if not _is_utf8(path):
        passed_over.append(PassedOver(_shown(path), "a name that is not UTF-8: rename it"))
        return False
    if os.path.islink(path) and not os.path.exists(path):
        if PurePosixPath(path).suffix.lower() in SUFFIXES:
            passed_over.append(PassedOver(path, "a link to a file that is not there, or to itself"))
        return False
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _shard_folders(infos: Sequence[pafs.FileInfo]) -> set[str]:
    """The folders among these files that `ray-sr data prepare` writes or has written to."""
    folders: dict[str, set[str]] = {}
    for info in infos:
        name = "shard" if SHARD_NAME.fullmatch(info.base_name) else info.base_name
        folders.setdefault(info.path.rpartition("/")[0], set()).add(name)
    return {folder for folder, names in folders.items() if PHOTOS in names and names & {MANIFEST, "shard"}}


def _is_taken(info: pafs.FileInfo, name: PurePosixPath, ours: set[str], passed_over: Notes) -> bool:
    if any(_is_hidden(part) for part in name.parts) or info.path.rpartition("/")[0] in ours:
        return False
    suffix = name.suffix.lower()
    if suffix in OTHER_SUFFIXES:
        why = f"{suffix} is not read here: convert it to one of {', '.join(sorted(SUFFIXES))}"
        passed_over.append(PassedOver(info.path, why, lost=False))
    return suffix in SUFFIXES or (suffix == PARQUET and not SHARD_NAME.fullmatch(info.base_name))


def _photo_file(place: str, info: pafs.FileInfo, name: str) -> PhotoFile:
    stamp = "" if info.mtime_ns is None else str(info.mtime_ns)
    if "://" not in place:
        stamp += f" {os.stat(info.path).st_ctime_ns}"  # also of a file that was moved here with its old time
    return PhotoFile(_uri(place, info.path), name, info.size or 0, stamp=stamp)


def _uri(place: str, path: str) -> str:
    """A path inside the filesystem of `place` as a URI again; HTTP's paths are URIs already."""
    scheme, mark, rest = place.partition("://")
    if not mark or "://" in path:
        return path
    options = rest.partition("?")[2]
    return f"{scheme}://{path}" + (f"?{options}" if options else "")


def _photos_of(file: PhotoFile) -> list[PhotoFile]:
    if PurePosixPath(file.uri).suffix.lower() != PARQUET:
        return [file]
    try:
        names = _parquet_names(file)
        rows = sum(count for _, count in _row_groups(file.uri))
    except (OSError, pa.ArrowException) as error:
        raise InputError(access_error(file.uri, error)) from None
    size = file.size // max(rows, 1)
    stem = str(PurePosixPath(file.name).with_suffix(""))
    return [
        PhotoFile(f"{file.uri}#{row}", f"{stem}/{names[row] if names else f'{row:08d}'}", size, stamp=file.stamp)
        for row in range(rows)
    ]


def _parquet_names(file: PhotoFile) -> list[str] | None:
    """The names that a Parquet file has for its photos, if they are different ones."""
    parquet = _open_parquet(file.uri)
    schema = parquet.schema_arrow
    image = _image_column(file.uri, schema)
    column = next((name for name in NAME_COLUMNS if name in schema.names), None)
    if pa.types.is_struct(schema.field(image).type) and schema.field(image).type.get_field_index("path") >= 0:
        column = f"{image}.path"
    if column is None:
        return None
    values = parquet.read(columns=[column]).column(0)
    if pa.types.is_struct(values.type):
        values = pa.chunked_array([chunk.field("path") for chunk in values.chunks])
    names = [str(value) for value in values.to_pylist()]
    return names if len(set(names)) == len(names) else None


def _image_column(uri: str, schema: pa.Schema) -> str:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    binary = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    wanted = [name for name in IMAGE_COLUMNS if name in binary] or binary
    if not wanted:
        raise InputError(
            f"{uri}: no column of encoded photos (binary, or a struct with bytes) in this Parquet file"
        )
    return wanted[0]


@lru_cache(maxsize=16)
def _open_parquet(uri: str) -> pq.ParquetFile:
    filesystem, path = open_filesystem(uri)
    return pq.ParquetFile(filesystem.open_input_file(path))


@lru_cache(maxsize=64)
def _row_groups(uri: str) -> list[tuple[int, int]]:
    """(first row, number of rows) of each row group."""
    metadata = _open_parquet(uri).metadata
    groups, first = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        groups.append((first, rows))
        first += rows
    return groups


@lru_cache(maxsize=2)
def _encoded_photos(uri: str, group: int) -> list[bytes]:
    """The photos of a row group; None becomes empty bytes, which no decoder takes."""
    parquet = _open_parquet(uri)
    column = _image_column(uri, parquet.schema_arrow)
    table = parquet.read_row_group(group, columns=[column])
    values = table.column(0).to_pylist()
    return [(value["bytes"] if isinstance(value, dict) else value) or b"" for value in values]
