"""Which photos a command means, and where each result goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_sr.errors import RecipeError
from ray_sr.images import FORMATS, SUFFIXES, format_of

Existing = Literal["refuse", "overwrite", "skip"]

_OTHER_PICTURES = (".gif", ".bmp", ".avif", ".heic", ".jxl", ".jp2", ".psd", ".svg", ".pdf", ".ico")

ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}


@dataclass(frozen=True)
class UpscaleJob:
    """One photo and the place of its result. `problem`: why it cannot be done; `skip`: the result is there.

    comparison: where a picture of the photo beside its result goes, if it is wanted.
    """

    source: Path
    target: Path | None
    format: str = "png"
    problem: str | None = None
    skip: bool = False
    comparison: Path | None = None


@dataclass(frozen=True)
class _Found:
    """A file to read, its place below the folder that was named (None where it was named itself)."""

    path: Path
    below: Path | None = None
    problem: str | None = None


def plan_jobs(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    *,
    format: str | None = None,
    suffix: str = "",
    existing: Existing = "refuse",
    recursive: bool = False,
    compare: bool = False,
) -> list[UpscaleJob]:
    """Jobs for files, folders and glob patterns, in the order named; folders are sorted by name.

    output: a folder; a file, where it ends in a picture suffix and there is one photo; or None, beside each
    photo. Results are named after their photos plus `suffix`; folders keep their structure. format: one of
    png, jpeg, webp, tiff; by default the output file's, else png. From folders are taken: files with a picture
    suffix, not hidden, not results of others in the same folder. compare: a comparison is wanted of each.
    What is missing, would replace a photo that is read, or another result, becomes a job with a problem.
    Raises RecipeError for options that do not fit.
    """
    if format not in (None, *FORMATS):
        raise RecipeError(f"unknown picture format {format!r}: choose one of {', '.join(FORMATS)}")
    _check_names(inputs, output, suffix)
    file = _output_file(output)
    folder = None if file or output is None else Path(output)
    found = [entry for name in inputs for entry in _find(os.fspath(name), recursive, folder)]
    if file and len(found) != 1:
        raise RecipeError(f"{file} names one file, but there are {len(found)} photos: name a folder")
    chosen = format or (format_of(file) if file else "png")
    ending = suffix + ENDINGS[chosen]
    placed = [(entry, file or _place(entry, folder, ending)) for entry in found]
    return list(_checked(_without_results(placed), chosen, existing, compare))


def _check_names(
    inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None, suffix: str
) -> None:
    places = [os.fspath(place) for place in (*inputs, *([] if output is None else [output]))]
    if "" in places:
        raise RecipeError("an empty name stands for no photo and no folder: name one (. is the folder here)")
    if remote := [place for place in places if "://" in place]:
        raise RecipeError(f"{remote[0]}: is not on this machine: add --ray for buckets")
    if os.sep in suffix:
        raise RecipeError(f"the suffix {suffix!r} is a part of names and cannot hold {os.sep}")
    if output is not None and Path(output).suffix.lower() in _OTHER_PICTURES and not os.path.isdir(output):
        raise RecipeError(f"{output}: cannot be written: the name must end in one of {', '.join(SUFFIXES)}")


def _output_file(output: str | os.PathLike[str] | None) -> Path | None:
    """The output where it means a file: it ends in a picture suffix and is no folder."""
    path = None if output is None else Path(output)
    return path if path and path.suffix.lower() in SUFFIXES and not os.path.isdir(path) else None


def _find(name: str, recursive: bool, output: Path | None) -> Iterator[_Found]:
    path = Path(name)
    if os.path.isdir(path):  # unlike those of Path, these take any name
        yield from _in_folder(path, recursive, output)
    elif os.path.exists(path):
        yield _Found(path)
    elif matches := sorted(glob.glob(name, recursive=True)):
        yield from (_Found(Path(match)) for match in matches if not os.path.isdir(match))
    else:
        yield _Found(path, problem="no such file or folder")


def _in_folder(folder: Path, recursive: bool, output: Path | None) -> Iterator[_Found]:
    """Photos of a folder; a folder of results inside of it is passed over."""
    results = output.resolve() if output and output.resolve() != folder.resolve() else None
    photos = []
    for path in sorted(folder.rglob("*") if recursive else folder.glob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        inside = results is not None and path.resolve().is_relative_to(results)
        if path.suffix.lower() in SUFFIXES and not hidden and not inside and path.is_file():
            photos.append(_Found(path, below))
    yield from photos or [_Found(folder, problem="holds no picture (with --recursive, its folders count too)")]


def _place(entry: _Found, folder: Path | None, ending: str) -> Path:
    if folder is None:
        return entry.path.with_name(entry.path.stem + ending)
    below = entry.below or Path(entry.path.name)
    return folder / below.with_name(below.stem + ending)


def _without_results(placed: list[tuple[_Found, Path]]) -> list[tuple[_Found, Path]]:
    """Leaves out what an earlier run made beside the photos of a folder."""
    results = {_key(target) for entry, target in placed if _key(target) != _key(entry.path)}
    results |= {_key(_comparison(target)) for _, target in placed}
    return [(entry, target) for entry, target in placed if entry.below is None or _key(entry.path) not in results]


def _comparison(target: Path) -> Path:
    return target.with_name(f"{target.stem}_compare.png")


def _checked(
    placed: Iterable[tuple[_Found, Path]], format: str, existing: Existing, compare: bool
) -> Iterator[UpscaleJob]:
    placed = list(placed)
    sources = {_key(entry.path) for entry, _ in placed}
    owners: dict[str, Path] = {}
    for entry, target in placed:
        comparison = _comparison(target) if compare else None
        places = [place for place in (target, comparison) if place is not None]
        problem, skip = entry.problem, False
        if problem is None:
            problem = next(filter(None, (_conflict(place, sources, owners) for place in places)), None)
        if problem is None:
            owners.update({_key(place): entry.path for place in places})
            skip = existing == "skip" and os.path.exists(target)
        there = next((place for place in places if os.path.exists(place)), None)
        if problem is None and existing == "refuse" and there is not None:
            problem = f"{there} exists already: use --overwrite or --skip-existing"
        yield UpscaleJob(entry.path, None if entry.problem else target, format, problem, skip, comparison)


def _conflict(target: Path, sources: set[str], owners: dict[str, Path]) -> str | None:
    key = _key(target)
    if key in sources:
        return f"the result would replace the photo {target}: use another folder or --suffix"
    if key in owners:
        return f"the result would have the same name as that of {owners[key]}: {target}"
    return None


def _key(path: Path) -> str:
    return os.path.realpath(path)
