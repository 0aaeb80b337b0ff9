"""Which photos a command means, and where each result goes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_sr.errors import RecipeError
from ray_sr.images import FORMATS, OTHER_SUFFIXES, SUFFIXES, WRITTEN_SUFFIXES, format_of
from ray_sr.upscaling.finding import FoundPhoto, find_photos
from ray_sr.upscaling.moving import MovingNames
from ray_sr.upscaling.record import FileState, ResultRecords

Existing = Literal["refuse", "overwrite", "skip"]

_PICTURES = {*SUFFIXES, *OTHER_SUFFIXES}
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")

ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif", "jxl": ".jxl"}


@dataclass(frozen=True)
class UpscaleJob:
    """One photo and the place of its result. `problem`: why it cannot be done; `skip`: the result is there.

    comparison: where a picture of the photo beside its result goes, if it is wanted. state: of the photo, where
    its result is to be noted in the record of the folder, because the photo or the result is one of a folder.
    moves: it is a clip or an animation, whose result is of the format that its name says.
    """

    source: Path
    target: Path | None
    format: str = "png"
    problem: str | None = None
    skip: bool = False
    comparison: Path | None = None
    state: FileState | None = None
    moves: bool = False


def plan_jobs(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    *,
    format: str | None = None,
    suffix: str = "",
    existing: Existing = "refuse",
    recursive: bool = False,
    compare: bool = False,
    moving: MovingNames | None = None,
) -> list[UpscaleJob]:
    """Jobs for files, folders and glob patterns, in the order named; folders are sorted by name.

    output: a folder; a file, where it ends in a picture suffix and there is one photo; or None, beside each
    photo. Results are named after their photos plus `suffix`; folders keep their structure. format: one of
    `images.FORMATS`; by default the output file's, else png. What is taken from folders, see `find_photos`, where
    `moving` finds clips and animations; which name a result gets where two would meet, see `place_results`.
    compare: a comparison is wanted of each. What is missing, or would replace a photo that is read, becomes a job
    with a problem.
    Raises RecipeError for options that do not fit.
    """
    check_names(inputs, output, format, suffix)
    file = _output_file(output)
    folder = None if file or output is None else Path(output)
    records = ResultRecords()
    found = find_photos(inputs, recursive, folder, records, moving)
    if file and len(found) != 1:
        raise RecipeError(f"{file} names one file, but there are {len(found)} photos: name a folder")
    chosen = format or (format_of(file) if file else "png")
    ending = _endings(suffix + ENDINGS[chosen], moving)
    kept = records if existing == "skip" else None
    placed = [(found[0], file)] if file else place_results(found, folder, ending, kept)
    return list(_checked(_without_results(placed), chosen, existing, compare, recorded=folder is not None))


def plan_found(
    found: Sequence[FoundPhoto],
    folder: Path,
    records: ResultRecords,
    format: str,
    suffix: str,
    overwrite: bool,
    moving: MovingNames | None = None,
) -> list[UpscaleJob]:
    """Jobs for photos of folders whose results go into `folder`: those that the records do not know as done."""
    placed = place_results(found, folder, _endings(suffix + ENDINGS[format], moving), records)
    waiting = [
        (photo, place)
        for photo, place in _without_results(placed)
        if not records.of(place.parent).has_done(photo.path, place.name)
    ]
    return list(_checked(waiting, format, "overwrite" if overwrite else "skip", compare=False, recorded=True))


def _endings(photos: str, moving: MovingNames | None) -> Callable[[FoundPhoto], str]:
    """What follows the stem of each in the name of its result."""
    return lambda found: moving.ending(found.path) if moving is not None and found.moves else photos


def check_names(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    format: str | None,
    suffix: str,
) -> None:
    """Raises RecipeError for names that cannot be what is meant."""
    if format not in (None, *FORMATS):
        raise RecipeError(f"unknown picture format {format!r}: choose one of {', '.join(FORMATS)}")
    places = [os.fspath(place) for place in (*inputs, *([] if output is None else [output]))]
    if "" in places:
        raise RecipeError("an empty name stands for no photo and no folder: name one (. is the folder here)")
    if remote := [place for place in places if "://" in place]:
        raise RecipeError(f"{remote[0]}: is not on this machine: add --ray for buckets")
    if os.sep in suffix:
        raise RecipeError(f"the suffix {suffix!r} is a part of names and cannot hold {os.sep}")
    if output is not None and not os.path.isdir(output):
        _check_output_name(os.fspath(output), format)
        _check_kind(os.fspath(output))


def _check_kind(output: str) -> None:
    """Raises RecipeError for what is there, and neither a file that is replaced nor a folder."""
    suffix = Path(output).suffix.lower()
    if os.path.exists(output) and not (suffix in WRITTEN_SUFFIXES and os.path.isfile(output)):
        what = "a file and no folder" if os.path.isfile(output) else "neither a file nor a folder"
        raise RecipeError(f"{output}: is {what}: name a folder, a picture such as big.png, or - for stdout")


def _check_output_name(output: str, format: str | None) -> None:
    """Raises RecipeError for the name of a picture that cannot be written, or is to be of another format."""
    suffix = Path(output).suffix.lower()
    if suffix in ARCHIVES:
        raise RecipeError(f"{output}: archives are not written: name a folder or a picture")
    if suffix in _PICTURES and suffix not in WRITTEN_SUFFIXES:
        endings = ", ".join(WRITTEN_SUFFIXES)
        raise RecipeError(f"{output}: cannot be written: the name must end in one of {endings}")
    if suffix in WRITTEN_SUFFIXES and format not in (None, WRITTEN_SUFFIXES[suffix]):
        named = WRITTEN_SUFFIXES[suffix]
        raise RecipeError(f"{output} names a {named} file, --format says {format}: leave one out, or change it")


def _output_file(output: str | os.PathLike[str] | None) -> Path | None:
    """The output where it means a file: it ends in a picture suffix and is no folder."""
    path = None if output is None else Path(output)
    return path if path and path.suffix.lower() in WRITTEN_SUFFIXES and not os.path.isdir(path) else None


def place_results(
    found: Sequence[FoundPhoto],
    folder: Path | None,
    ending: Callable[[FoundPhoto], str],
    records: ResultRecords | None,
) -> list[tuple[FoundPhoto, Path]]:
    """Each photo with the place of its result, no two with the same.

    Photos named one by one whose results would meet keep the folders that they differ in. Where they meet all
    the same (half.jpg beside half.png), the later one has its own suffix in the name; so it has where the
    records of earlier runs, if they are given, know the place as that of another photo.
    """
    belows = {} if folder is None else _belows(found)
    choices = []
    for photo in found:
        beside = photo.path if folder is None else folder / belows[photo]
        stems = (photo.path.stem, photo.path.name.replace(".", "_"))
        choices.append((photo, [beside.with_name(stem + ending(photo)) for stem in stems]))
    taken = {} if records is None else _known_owners(choices, records)
    placed = []
    for photo, places in choices:
        owner = _key(photo.path)
        free = (place for place in places if taken.setdefault(_key(place), owner) == owner)
        placed.append((photo, next(free, places[-1])))
    return placed


def _known_owners(choices: list[tuple[FoundPhoto, list[Path]]], records: ResultRecords) -> dict[str, str]:
    """The photos, as long as they are there, whose results the records know at these places."""
    places = [place for _, choice in choices for place in choice]
    known = ((place, records.of(place.parent).owner(place.name)) for place in places)
    return {_key(place): owner for place, owner in known if owner is not None and os.path.exists(owner)}


def _belows(found: Sequence[FoundPhoto]) -> dict[FoundPhoto, Path]:
    """Where below the output each photo's result goes, still under the photo's name."""
    flat = [photo for photo in found if photo.below is None or photo.below.name == str(photo.below)]
    counts = Counter(photo.path.stem for photo in flat if photo.problem is None)
    parents = {
        os.path.abspath(photo.path.parent) for photo in flat if photo.below is None or counts[photo.path.stem] > 1
    }
    root = os.path.commonpath(parents) if parents else ""
    belows = {}
    for photo in found:
        if photo.below is not None:
            belows[photo] = photo.below
        elif counts[photo.path.stem] > 1:
            belows[photo] = Path(os.path.relpath(os.path.abspath(photo.path), root))
        else:
            belows[photo] = Path(photo.path.name)
    return belows


def _without_results(placed: list[tuple[FoundPhoto, Path]]) -> list[tuple[FoundPhoto, Path]]:
    """Leaves out what an earlier run made beside the photos of a folder."""
    results = {_key(target) for entry, target in placed if _key(target) != _key(entry.path)}
    results |= {_key(_comparison(target)) for _, target in placed}
    return [(entry, target) for entry, target in placed if entry.below is None or _key(entry.path) not in results]


def _comparison(target: Path) -> Path:
    return target.with_name(f"{target.stem}_compare.png")


def _checked(
    placed: Sequence[tuple[FoundPhoto, Path]], format: str, existing: Existing, compare: bool, recorded: bool
) -> Iterator[UpscaleJob]:
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
        state = FileState.of(entry.path) if recorded or entry.below is not None else None
        place = None if entry.problem else target
        yield UpscaleJob(entry.path, place, format, problem, skip, comparison, state, entry.moves)


def _conflict(target: Path, sources: set[str], owners: dict[str, Path]) -> str | None:
    key = _key(target)
    if key in sources:
        return f"the result would replace the photo {target}: use another folder or --suffix"
    if key in owners:
        return f"the result would have the same name as that of {owners[key]}: {target}"
    return None


def _key(path: Path) -> str:
    return os.path.realpath(path)
