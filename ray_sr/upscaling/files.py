"""Upscaling of files and folders: photos are read, upscaled and written at the same time, in three stages.

Reading and writing run in threads (libvips and NumPy release the interpreter lock), so that the device works
while the PNG encoder does. A photo that fails is named with its reason, and the others go on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from ray_sr.errors import RaySRError, ResourceError
from ray_sr.images import (
    DEFAULT_LIMITS,
    Limits,
    Metadata,
    Photo,
    check_result_size,
    left_out,
    read_photo,
    write_photo,
)
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.naming import Existing, Job, plan_jobs
from ray_sr.upscaling.photos import target_size, upscale_photo
from ray_sr.upscaling.progress import ProgressReport

_AHEAD = 2  # photos that a stage may be ahead of the next one: bounds what is held in memory
_WRITERS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileOptions:
    """How results are named and encoded.

    format: png, jpeg, webp or tiff; None: as the output file is named, else png. suffix: added to the name;
    None: `_x` and the scale. existing: what happens where the result's file is there. quality, lossless,
    metadata and background: as for `ray_sr.images.encode`. limits: which photos are accepted.
    """

    format: str | None = None
    suffix: str | None = None
    existing: Existing = "refuse"
    recursive: bool = False
    quality: int = 95
    lossless: bool = False
    metadata: Metadata = "keep"
    background: tuple[int, int, int] = (255, 255, 255)
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class FileResult:
    """What became of one photo. width, height: of the result, in pixels; seconds: spent on this photo.

    warnings: what was changed or lost on the way, as the words of `Photo.warnings`.
    """

    source: str
    target: str | None
    status: Literal["done", "skipped", "planned", "failed"]
    reason: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.source}: {self.reason}"
        if self.status != "done":
            return f"{self.source}: {self.status}, {self.target}"
        notes = f" ({', '.join(self.warnings)})" if self.warnings else ""
        return f"{self.source} -> {self.target} {self.width}x{self.height} in {self.seconds:.1f} s{notes}"


@dataclass(frozen=True)
class Summary:
    """What became of all photos, in order. seconds: from start to end."""

    files: tuple[FileResult, ...]
    seconds: float

    def count(self, status: str) -> int:
        """How many photos have this status."""
        return sum(file.status == status for file in self.files)

    @property
    def megapixels(self) -> float:
        """Megapixels written."""
        return sum(file.megapixels for file in self.files)

    @property
    def exit_code(self) -> int:
        """0, or 3 where a photo failed."""
        return 3 if self.count("failed") else 0

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: counts, megapixels, seconds, and each file's result."""
        counts = {status: self.count(status) for status in ("done", "skipped", "planned", "failed")}
        totals = {"megapixels": self.megapixels, "seconds": self.seconds}
        return {**counts, **totals, "files": [asdict(file) for file in self.files]}

    def __str__(self) -> str:
        rate = self.megapixels / max(1e-9, self.seconds)
        counts = [(self.count(s), s) for s in ("done", "planned", "skipped", "failed")]
        words = ", ".join(f"{number} {status}" for number, status in counts if number) or "nothing to do"
        return f"{words}: {self.megapixels:.1f} Mpx in {self.seconds:.1f} s ({rate:.2f} Mpx/s)"


@dataclass(frozen=True)
class _Step:
    """A photo on its way through the stages; `failure` ends it."""

    job: Job
    photo: Photo | None = None
    failure: str | None = None
    seconds: float = 0.0

    def go(self, work: Callable[[], Photo]) -> _Step:
        """One stage further, unless the photo is out already."""
        if self.failure or self.job.skip:
            return self
        begin = time.perf_counter()
        try:
            photo = work()
        except MemoryError:
            return replace(self, photo=None, failure="not enough memory for this photo")
        except RaySRError as error:
            return replace(self, photo=None, failure=str(error).removeprefix(f"{self.job.source}: "))
        return replace(self, photo=photo, seconds=self.seconds + time.perf_counter() - begin)

    @property
    def ready(self) -> Photo:
        assert self.photo is not None
        return self.photo


def upscale_files(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    engine: Engine,
    *,
    scale: float | None = None,
    options: FileOptions | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> Summary:
    """Upscales files, folders and glob patterns; see `plan_jobs` for `output` and `upscale_photo` for `scale`.

    Results appear whole or not at all; a run that was killed is finished by the same call with
    `existing="skip"`. dry_run: only says what would be done. Progress goes to stderr.
    Raises RecipeError for options that do not fit; all else is in the summary.
    """
    options = options or FileOptions()
    begin = time.perf_counter()
    wanted = engine.scale if scale is None else scale
    jobs = plan_jobs(
        inputs,
        output,
        format=options.format,
        suffix=f"_x{wanted:g}" if options.suffix is None else options.suffix,
        existing=options.existing,
        recursive=options.recursive,
    )
    if dry_run:
        results = [_result(_Step(job, failure=job.problem), "planned") for job in jobs]
    else:
        results = _run(jobs, engine, wanted, options, quiet)
    return Summary(tuple(results), time.perf_counter() - begin)


def _run(jobs: list[Job], engine: Engine, scale: float, options: FileOptions, quiet: bool) -> list[FileResult]:
    report = ProgressReport(len(jobs), quiet=quiet)

    def read(job: Job) -> _Step:
        return _Step(job, failure=job.problem).go(lambda: _read(job, scale, options))

    def upscale(step: _Step) -> _Step:
        further = step.go(lambda: upscale_photo(step.ready, engine, scale=scale, progress=report.advance))
        report.next()
        return further

    def write(step: _Step) -> FileResult:
        return _result(step.go(lambda: _write(step.job, step.ready, options)), "done")

    results = []
    try:
        with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            upscaled = map(upscale, _ahead(readers, read, jobs))
            for result in _ahead(writers, write, upscaled):
                report.finish(result)
                results.append(result)
    finally:
        report.close()
    return results


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in a pool, in order, that takes only a few items more than its results are asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(job: Job, scale: float, options: FileOptions) -> Photo:
    photo = read_photo(job.source, options.limits)
    height, width = target_size(photo, scale)
    check_result_size(job.format, width, height)  # before the work, not after it
    return photo


def _write(job: Job, photo: Photo, options: FileOptions) -> Photo:
    assert job.target is not None
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{job.target.parent}: cannot be made ({error.strerror or error})") from None
    write_photo(
        job.target,
        photo,
        format=job.format,
        quality=options.quality,
        lossless=options.lossless,
        metadata=options.metadata,
        background=options.background,
    )
    return replace(photo, warnings=(*photo.warnings, *left_out(photo, job.format)))


def _result(step: _Step, status: Literal["done", "planned"]) -> FileResult:
    job, photo = step.job, step.photo
    source, target = str(job.source), None if job.target is None else str(job.target)
    if step.failure:
        return FileResult(source, target, "failed", step.failure, seconds=step.seconds)
    if job.skip:
        return FileResult(source, target, "skipped", "the result is there already")
    if photo is None:
        return FileResult(source, target, status)
    size = (photo.width, photo.height)
    return FileResult(source, target, status, "", *size, step.seconds, photo.warnings)
