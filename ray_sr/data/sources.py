"""Finds photographs: folders, globs, files and Parquet data sets on any filesystem of pyarrow or fsspec."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ray_sr.errors import InputError
from ray_sr.images import SUFFIXES
from ray_sr.storage import access_error, open_filesystem, read_file

PARQUET = ".parquet"
IMAGE_COLUMNS = ("image", "bytes", "img", "jpg", "png", "content", "data")
NAME_COLUMNS = ("name", "file_name", "filename", "path", "photo", "key", "__key__", "id")


@dataclass(frozen=True)
class PhotoFile:
    """A file that may be a photograph: `uri` opens it, `name` is for people, `size` is in bytes.

    A row of a Parquet file has the file's URI with #row. `partner` is the photo of the same name among the
    input photos, where there are such.
    """

    uri: str
    name: str
    size: int
    partner: PhotoFile | None = None


def find_photos(places: Sequence[str]) -> list[PhotoFile]:
    """Every file with a photo's suffix under these folders, globs, URIs and files, in a fixed order.

    A file named outright is taken whatever its suffix. Parquet files give a photo for each row: a column of
    encoded photos (binary, or a struct with `bytes`), named or alone. Raises InputError for a place that does
    not exist, cannot be read or holds no photo.
    """
    found: dict[str, PhotoFile] = {}
    for place in places:
        matched = [photo for file in _expand(place) for photo in _photos_of(file)]
        if not matched:
            raise InputError(f"{place}: no photos here (looked for {', '.join(sorted(SUFFIXES))}, {PARQUET})")
        found.update((photo.uri, photo) for photo in matched)
    return sorted(found.values(), key=lambda photo: (photo.name, photo.uri))


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


def _expand(place: str) -> list[PhotoFile]:
    if "://" in place:
        pattern = place.partition("?")[0]  # a question mark begins the options of a URI
        if not glob.has_magic(pattern):
            return _at(place)
    elif not glob.has_magic(place) or Path(place).exists():
        return _at(place)
    else:
        return [photo for path in sorted(glob.glob(place, recursive=True)) for photo in _at(path)]
    folder = pattern.partition("*")[0].rpartition("/")[0] + place[len(pattern) :]
    return [photo for photo in _at(folder) if fnmatch.fnmatch(photo.uri.partition("?")[0], pattern)]


def _at(place: str) -> list[PhotoFile]:
    filesystem, path = open_filesystem(place)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [PhotoFile(_uri(place, path), PurePosixPath(path).name, info.size or 0)]
        if info.type == pafs.FileType.Directory:
            return list(_walk(filesystem, path, place))
    except (OSError, pa.ArrowException) as error:
        raise InputError(access_error(place, error)) from None
    raise InputError(f"{place}: no such file or folder")


def _walk(filesystem: pafs.FileSystem, folder: str, place: str) -> Iterator[PhotoFile]:
    base = PurePosixPath(folder)
    for info in filesystem.get_file_info(pafs.FileSelector(folder, recursive=True)):
        suffix = PurePosixPath(info.path).suffix.lower()
        if info.type != pafs.FileType.File or info.base_name.startswith("."):
            continue
        if suffix in SUFFIXES or suffix == PARQUET:
            name = str(PurePosixPath(info.path).relative_to(base))
            yield PhotoFile(_uri(place, info.path), name, info.size or 0)


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
        PhotoFile(f"{file.uri}#{row}", f"{stem}/{names[row] if names else f'{row:08d}'}", size)
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
