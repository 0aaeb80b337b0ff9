"""Finds the photographs that are to become shards: folders, globs and files on any pyarrow filesystem."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs as pafs

from ray_sr.errors import InputError
from ray_sr.images import SUFFIXES
from ray_sr.storage import first_line, open_filesystem


@dataclass(frozen=True)
class PhotoFile:
    """A file that may be a photograph: `uri` opens it, `name` is for people, `size` is in bytes."""

    uri: str
    name: str
    size: int


def find_photos(places: Sequence[str]) -> list[PhotoFile]:
    """Every file with a photo's suffix under these folders, globs, URIs and files, in a fixed order.

    A file named outright is taken whatever its suffix. Raises InputError for a place that does not
    exist or holds no photo.
    """
    found: dict[str, PhotoFile] = {}
    for place in places:
        matched = _expand(place)
        if not matched:
            raise InputError(f"{place}: no photos here (looked for {', '.join(sorted(SUFFIXES))})")
        found.update((photo.uri, photo) for photo in matched)
    return sorted(found.values(), key=lambda photo: (photo.name, photo.uri))


def _expand(place: str) -> list[PhotoFile]:
    if not glob.has_magic(place) or Path(place).exists():
        return _at(place)
    if "://" not in place:
        return [photo for path in sorted(glob.glob(place, recursive=True)) for photo in _at(path)]
    scheme, _, path = place.partition("://")
    filesystem, _ = open_filesystem(f"{scheme}://{path.partition('/')[0]}")
    folder = path.partition("*")[0].rpartition("/")[0]
    return [photo for photo in _walk(filesystem, folder, f"{scheme}://") if fnmatch.fnmatch(photo.uri, place)]


def _at(place: str) -> list[PhotoFile]:
    filesystem, path = open_filesystem(place)
    scheme = place.partition("://")[0] + "://" if "://" in place else ""
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise InputError(f"{place}: cannot read: {first_line(error)}") from None
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{place}: no such file or folder")
    if info.type == pafs.FileType.File:
        return [PhotoFile(scheme + path, PurePosixPath(path).name, info.size)]
    return _walk(filesystem, path, scheme)


def _walk(filesystem: pafs.FileSystem, folder: str, scheme: str) -> list[PhotoFile]:
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder: {first_line(error)}") from None
    base = PurePosixPath(folder)
    return [
        PhotoFile(scheme + info.path, str(PurePosixPath(info.path).relative_to(base)), info.size)
        for info in infos
        if info.type == pafs.FileType.File
        and PurePosixPath(info.path).suffix.lower() in SUFFIXES
        and not info.base_name.startswith(".")
    ]
