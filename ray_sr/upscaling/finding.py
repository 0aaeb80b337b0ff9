"""Finds the photos that files, folders and glob patterns mean, on this machine."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray_sr.images import SUFFIXES
from ray_sr.storage.local import why_absent
from ray_sr.upscaling.moving import MovingNames
from ray_sr.upscaling.record import ResultRecords


@dataclass(frozen=True)
class FoundPhoto:
    """A file to read, and its place below the folder that was named (None where it was named itself).

    problem: why it cannot be read, known before it is tried. moves: it is a clip or an animation.
    """

    path: Path
    below: Path | None = None
    problem: str | None = None
    moves: bool = False


def find_photos(
    inputs: Sequence[str | os.PathLike[str]],
    recursive: bool,
    output: Path | None,
    records: ResultRecords,
    moving: MovingNames | None = None,
) -> list[FoundPhoto]:
    """The photos of all inputs in the order named, each file once; folders are sorted by name.

    From folders are taken: files with a picture suffix, and what `moving` takes, that are not hidden, not below
    `output` (a folder) and not results of earlier runs. Several folders keep their own names: what is found in
    them lies below the folder that holds them all. What is missing or cannot be entered is found with a problem.
    """
    names = [os.fspath(name) for name in inputs]
    root = _common_folder(names)
    found: dict[str, FoundPhoto] = {}
    for name in names:
        for photo in _find(name, recursive, output, records, moving):
            if root is not None and photo.below is not None:
                photo = replace(photo, below=Path(os.path.relpath(os.path.abspath(photo.path), root)))
            found.setdefault(_place_of(photo.path), photo)
    return list(found.values())


def _place_of(path: Path) -> str:
    """The same for all spellings of a path; a link is not the file it leads to."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _common_folder(names: Sequence[str]) -> str | None:
    """The folder that holds all folders among the names; None where there are not several."""
    folders = {os.path.abspath(name) for name in names if os.path.isdir(name)}
    return os.path.commonpath(folders) if len(folders) > 1 else None


def _find(
    name: str, recursive: bool, output: Path | None, records: ResultRecords, moving: MovingNames | None
) -> Iterator[FoundPhoto]:
    path = Path(name)
    if os.path.isdir(path):  # unlike those of Path, these take any name
        yield from _in_folder(path, recursive, output, records, moving)
    elif os.path.exists(path):
        yield FoundPhoto(path)
    elif matches := sorted(glob.glob(name, recursive=True)):
        yield from (FoundPhoto(Path(match)) for match in matches if not os.path.isdir(match))
    else:
        yield FoundPhoto(path, problem=_problem_of_link(path) or why_absent(path))


def _in_folder(
    folder: Path, recursive: bool, output: Path | None, records: ResultRecords, moving: MovingNames | None
) -> Iterator[FoundPhoto]:
    """Photos of a folder; a folder of results inside of it is passed over."""
    inner = None if output is None else os.path.realpath(output)
    if inner == os.path.realpath(folder):
        inner = None
    photos, results = [], 0
    for photo in walk_photos(folder, recursive, inner, moving):
        if photo.problem is None and records.is_result(photo.path):
            results += 1
        else:
            photos.append(photo)
    if not photos:
        why = "holds no picture but results of earlier runs: name them one by one to enlarge them further"
        none = "holds no picture (with --recursive, its folders count too)"
        photos = [FoundPhoto(folder, problem=why if results else none)]
    yield from photos


def walk_photos(
    folder: Path, recursive: bool, left_out: str | None = None, moving: MovingNames | None = None
) -> Iterator[FoundPhoto]:
    """All files of a folder that have a picture suffix, or move, and are not hidden, sorted by their places.

    left_out: real path of a folder inside that is not entered. Links to files are followed, links to folders
    are not. A link that leads nowhere and a folder that cannot be listed are found with a problem.
    """
    found: list[FoundPhoto] = []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(".")]
        except OSError as error:
            found.append(FoundPhoto(current, problem=f"cannot be listed ({error.strerror or error})"))
            continue
        for entry in entries:
            path = current / entry.name
            if entry.is_dir(follow_symlinks=False):
                if recursive and os.path.realpath(path) != left_out:
                    waiting.append(path)
            elif (moves := moving is not None and moving.takes(path)) or path.suffix.lower() in SUFFIXES:
                problem = _problem_of_link(path)
                if problem or os.path.isfile(path):
                    found.append(FoundPhoto(path, path.relative_to(folder), problem, moves))
    yield from sorted(found, key=lambda photo: photo.path)


def passed_over(
    inputs: Sequence[str | os.PathLike[str]],
    recursive: bool,
    output: str | os.PathLike[str] | None,
    moving: MovingNames | None = None,
) -> list[Path]:
    """What of the folders among the inputs is no folder and nothing is read from; hidden files apart."""
    inner = None if output is None else os.path.realpath(output)
    found: list[Path] = []
    waiting = [Path(name) for name in inputs if os.path.isdir(name)]
    while waiting:
        try:
            with os.scandir(current := waiting.pop()) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(".")]
        except OSError:
            continue  # told where photos are looked for
        for entry in entries:
            path = current / entry.name
            if entry.is_dir(follow_symlinks=False):
                if recursive and os.path.realpath(path) != inner:
                    waiting.append(path)
            elif os.path.exists(path) and not os.path.isdir(path) and not _is_read(path, moving):
                found.append(path)
    return sorted(found)


def _is_read(path: Path, moving: MovingNames | None) -> bool:
    """Whether a folder's file is taken: no pipes, sockets or devices, whatever they are called."""
    return os.path.isfile(path) and (path.suffix.lower() in SUFFIXES or bool(moving and moving.takes(path)))


def _problem_of_link(path: Path) -> str | None:
    """Why a link leads to no file; None for whatever else this is."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    try:
        os.stat(path)
    except OSError as error:
        return f"is a link that leads nowhere ({error.strerror or error})"
    return None
