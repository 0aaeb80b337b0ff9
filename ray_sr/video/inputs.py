"""Which inputs are clips or animations, where their results go, and how options of photos apply to them."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions
from ray_sr.upscaling.finding import FoundPhoto, walk_photos
from ray_sr.upscaling.moving import MovingNames
from ray_sr.upscaling.naming import ARCHIVES, place_results
from ray_sr.upscaling.record import FileState, ResultRecords
from ray_sr.upscaling.results import FileResult
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.animations import upscale_animation
from ray_sr.video.clip import CLIP_SUFFIXES, RESULT_SUFFIXES
from ray_sr.video.options import ClipOptions, ClipResult

ANIMATIONS = {".gif": "gif", ".webp": "webp", ".png": "png", ".apng": "png"}

_HEAD_BYTES = 1 << 20


def split_inputs(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Inputs that are photos (or folders, or are not there), and files that move. Patterns are expanded where one
    of their matches moves."""
    photos: list[str] = []
    moving: list[str] = []
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        found = [match for match in matches if is_moving(match)]
        moving += found
        photos += [match for match in matches if match not in found] if found else [name]
    return photos, list(dict.fromkeys(moving))


def check_photos_output(photos: Sequence[str], output: str | None) -> None:
    """Raises RecipeError where photos are to become a clip."""
    suffix = os.path.splitext(output or "")[1].lower()
    if output is None or suffix not in CLIP_SUFFIXES or os.path.isdir(output):
        return
    still = [name for name in photos if os.path.splitext(name)[1].lower() not in CLIP_SUFFIXES]
    if still:
        raise RecipeError(f"{output} names a clip, {still[0]} is none: name a folder, or a picture such as .png")


def is_moving(path: str) -> bool:
    """Whether this is a clip or an animation: by its name, and for WebP and PNG by what the file says."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in CLIP_SUFFIXES or suffix == ".gif":
        return os.path.isfile(path)
    if suffix not in ANIMATIONS or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if head[:4] == b"RIFF":
        return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and 0 <= head.find(b"acTL") < (head.find(b"IDAT") % (1 << 62))


@dataclass(frozen=True)
class MovingJob:
    """A clip or animation and the place of its result."""

    source: Path
    target: Path

    @property
    def is_animation(self) -> bool:
        return self.target.suffix.lower() in ANIMATIONS


def plan_moving(
    inputs: Sequence[str], output: str | None, suffix: str, format: str | None, others: int = 0
) -> list[MovingJob]:
    """Where each result goes; see `ray_sr.upscaling.naming.plan_jobs`, which does it for photos. others: how many
    inputs there are beside these.

    Clips keep their container where results can have it, else .mkv, which holds any sound; animations theirs,
    or what `format` says. Raises RecipeError where that cannot be.
    """
    if output is not None and "://" in output:
        raise RecipeError(f"{output}: clips and animations go into a folder, with --ray one that all nodes reach")
    file = _output_file(output)
    if file and len(inputs) + others != 1:
        raise RecipeError(f"{file} names one file, but there are {len(inputs) + others}: name a folder")
    jobs: dict[Path, MovingJob] = {}
    for name in inputs:
        source = Path(name)
        ending = suffix + _ending(source, format)
        place = source.with_name(source.stem + ending) if output is None else Path(output, source.stem + ending)
        if place in jobs:
            place = place.with_name(f"{source.name.replace('.', '_')}{ending}")
        target = file or place
        if os.path.realpath(target) == os.path.realpath(source):
            raise RecipeError(f"{target}: the result would replace its source: use another folder or --suffix")
        if source.suffix.lower() in CLIP_SUFFIXES and target.suffix.lower() in ANIMATIONS:
            raise RecipeError(f"{target}: a clip's result must end in one of {', '.join(RESULT_SUFFIXES)}")
        jobs[target] = MovingJob(source, target)
    return list(jobs.values())


def _output_file(output: str | None) -> Path | None:
    path = None if output is None else Path(output)
    if path is None or path.is_dir():
        return None
    suffix = path.suffix.lower()
    if suffix in RESULT_SUFFIXES or suffix in ANIMATIONS:
        return path
    if suffix in (*CLIP_SUFFIXES, *ARCHIVES, ".jpg", ".jpeg", ".tif", ".tiff", ".avif", ".heic", ".jxl"):
        known = ", ".join((*RESULT_SUFFIXES, *ANIMATIONS))
        raise RecipeError(f"{output}: what moves cannot be written as that: the name must end in one of {known}")
    return None


def _ending(source: Path, format: str | None) -> str:
    suffix = source.suffix.lower()
    if suffix in ANIMATIONS:
        return {"png": ".png", "webp": ".webp", None: suffix}.get(format, suffix)
    return suffix if suffix in RESULT_SUFFIXES else ".mkv"


def clip_options(options: FileOptions, codec: str | None, crf: int | None, resume: bool) -> ClipOptions:
    """The options of clips that those of photos stand for. Raises RecipeError where there are none of that kind."""
    if options.compare or options.consistency:
        raise RecipeError("--compare and --consistency are for photos, not for clips and animations")
    keep = options.metadata == "keep"
    encoding = options.quality, options.lossless
    return ClipOptions(codec, crf, options.existing, resume, keep, options.limits, *encoding)


def require_av(jobs: Sequence[MovingJob]) -> None:
    """Raises ResourceError where PyAV is absent and one of these needs it."""
    if not all(job.is_animation for job in jobs) and not _has_av():
        raise ResourceError("clips need PyAV, which is not installed: pip install 'ray-sr[video]'")


def _has_av() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def upscale_moving(
    jobs: Sequence[MovingJob],
    engine: Engine,
    *,
    model: str,
    wanted: TargetSize,
    options: FileOptions,
    choices: dict[str, Any],
    dry_run: bool = False,
    quiet: bool = False,
    report: Callable[[FileResult], None] = lambda result: None,
) -> Iterator[ClipResult]:
    """Upscales clips and animations one after the other. choices: of `clip_options`.

    Options that do not fit one of several are its failure; RecipeError is raised where there is one alone.
    """
    chosen = clip_options(options, **choices)
    for job in jobs:
        if dry_run:
            yield ClipResult(str(job.source), str(job.target), "planned")
            continue
        try:
            result = _upscale(job, engine, model=model, wanted=wanted, options=chosen, quiet=quiet)
        except RecipeError as error:
            if len(jobs) == 1:
                raise
            result = refused(job, error)
        report(result)
        yield result


def _upscale(job: MovingJob, engine: Engine, **options: Any) -> ClipResult:
    if job.is_animation:
        return upscale_animation(job.source, job.target, engine, **options)
    from ray_sr.video.clips import upscale_clip

    return upscale_clip(job.source, job.target, engine, **options)


def refused(job: MovingJob, error: RecipeError) -> ClipResult:
    """The result of one of several whose options do not fit."""
    names = str(job.source), str(job.target)
    told = str(error)
    for name in names:
        told = told.removeprefix(f"{name}: ")
    return ClipResult(*names, "failed", told)


def plan_below(places: Sequence[str], output: str, moving: MovingNames) -> list[MovingJob]:
    """What moves in the local folders among the places, to the bottom; results keep the folders' structure."""
    inner, records = os.path.realpath(output), ResultRecords()
    found: list[FoundPhoto] = []
    for place in places:
        if os.path.isdir(place):
            left_out = None if inner == os.path.realpath(place) else inner
            found += [
                one for one in walk_photos(Path(place), True, left_out, moving) if one.moves and not one.problem
            ]
    found = [one for one in found if not records.is_result(one.path)]
    placed = place_results(found, Path(output), lambda one: moving.ending(one.path), None)
    return [MovingJob(one.path, target) for one, target in placed]


class MovingFiles:
    """Which files of folders are clips and animations, and how their results are called, at a model's scale.

    Clips are taken where PyAV is there. Raises RecipeError for options that clips do not have.
    """

    def __init__(self, scale: int, *, wanted: TargetSize, options: FileOptions, choices: dict[str, Any]) -> None:
        self._options = clip_options(options, **choices)
        self._suffix = wanted.suffix(scale) if options.suffix is None else options.suffix
        self._format = options.format
        self._clips = _has_av()
        self._known: dict[Path, tuple[FileState | None, bool]] = {}

    def takes(self, path: Path) -> bool:
        """Whether this file moves; each state of a file is looked into once."""
        suffix = path.suffix.lower()
        if suffix not in (CLIP_SUFFIXES if self._clips else ()) and suffix not in ANIMATIONS:
            return False
        state = FileState.of(path)
        if path not in self._known or self._known[path][0] != state:
            self._known[path] = state, is_moving(str(path))
        return self._known[path][1]

    def ending(self, path: Path) -> str:
        """What follows the stem in the name of its result."""
        return self._suffix + _ending(path, self._format)


class MovingInFolders(MovingFiles):
    """Clips and animations of a run over folders: `ray_sr.upscaling.moving.Moving`.

    Options as for `upscale_moving`. watching: unfinished runs are gone on with, and begun anew where they are of
    another source or other options.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        wanted: TargetSize,
        options: FileOptions,
        choices: dict[str, Any],
        quiet: bool = False,
        report: Callable[[FileResult], None] = lambda result: None,
        watching: bool = False,
    ) -> None:
        super().__init__(engine.scale, wanted=wanted, options=options, choices=choices)
        if watching:
            self._options = replace(self._options, resume=True)
        self._common: dict[str, Any] = {"model": model, "wanted": wanted, "quiet": quiet}
        self._engine, self._report, self._watching = engine, report, watching

    def upscale(self, source: Path, target: Path) -> ClipResult:
        """Enlarges one; options that do not fit it are its failure."""
        job = MovingJob(source, target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            result = self._made(job)
        except RecipeError as error:
            result = refused(job, error)
        except OSError as error:
            told = f"{target.parent}: cannot be made ({error.strerror or error})"
            result = ClipResult(str(source), str(target), "failed", told)
        self._report(result)
        return result

    def _made(self, job: MovingJob) -> ClipResult:
        try:
            return _upscale(job, self._engine, options=self._options, **self._common)
        except RecipeError:
            if not self._watching:
                raise
        anew = replace(self._options, resume=False, existing="overwrite")
        return _upscale(job, self._engine, options=anew, **self._common)
