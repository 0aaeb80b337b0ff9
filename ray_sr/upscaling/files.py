"""Upscaling of files and folders: photos are read, upscaled and written at the same time, in three stages.

Reading and writing run in threads (libvips and NumPy release the interpreter lock), so that the device works
while the PNG encoder does. A photo that fails is named with its reason, and the others go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TextIO, TypeVar

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
from ray_sr.images.streaming import write_bands
from ray_sr.storage.local import remove_leftovers
from ray_sr.upscaling.consistency import consistency_db
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.finding import passed_over
from ray_sr.upscaling.moving import Moving
from ray_sr.upscaling.naming import Existing, UpscaleJob, plan_jobs
from ray_sr.upscaling.photos import check_enlarges, side_by_side, upscale_in_bands, upscale_photo
from ray_sr.upscaling.progress import ProgressReport
from ray_sr.upscaling.record import ResultRecords, mark_xmp
from ray_sr.upscaling.results import FileResult, Summary
from ray_sr.upscaling.target_size import TargetSize

_AHEAD = 2  # photos that a stage may be ahead of the next one: bounds what is held in memory
# A core encodes some 35 Mpx/s of PNG and 10 of WebP, a fast GPU makes hundreds; each result lies in memory then.
_MOST_WRITERS = 16
LARGEST_IN_MEMORY = 256 << 20  # bytes of a result; larger ones go to disk as they are made

Item = TypeVar("Item")
Result = TypeVar("Result")
Hook = Callable[[UpscaleJob], None]


@dataclass(frozen=True)
class FileOptions:
    """How results are named and encoded.

    format: one of `images.FORMATS`; None: as the output file is named, else png. suffix: added to the name;
    None: `_x` and the scale. existing: what happens where the result's file is there. quality, lossless,
    metadata and background: as for `ray_sr.images.encode`. limits: which photos are accepted. consistency: see
    `upscale_photo`. compare: a picture beside each result, of the photo enlarged bicubically and the result.
    in_memory: results of more bytes than this, or whose network's result has more, are written as they are made.
    mark: results say in their XMP that they are, so that a later run over their folder passes them over.
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
    consistency: bool = False
    compare: bool = False
    in_memory: int = LARGEST_IN_MEMORY
    mark: bool = True


@dataclass(frozen=True)
class _Made:
    """A result: its height and width; the photo where it is still to be written, and what it is compared with."""

    size: tuple[int, int]
    warnings: tuple[str, ...]
    photo: Photo | None = None
    comparison: Photo | None = None
    consistency_db: float | None = None


@dataclass(frozen=True)
class _Step(Generic[Item]):
    """A photo on its way through the stages; `failure` ends it."""

    job: UpscaleJob
    value: Item | None = None
    failure: str | None = None
    seconds: float = 0.0

    def go(self, work: Callable[[], Result]) -> _Step[Result]:
        """One stage further, unless the photo is out already."""
        if self.failure or self.job.skip:
            return _Step(self.job, None, self.failure, self.seconds)
        begin = time.perf_counter()
        try:
            value = work()
        except MemoryError:
            return _Step(self.job, failure="not enough memory for this photo")
        except RaySRError as error:
            return _Step(self.job, failure=str(error).removeprefix(f"{self.job.source}: "))
        return _Step(self.job, value, None, self.seconds + time.perf_counter() - begin)

    @property
    def ready(self) -> Item:
        assert self.value is not None
        return self.value


def upscale_files(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    engine: Engine,
    *,
    scale: float | None = None,
    wanted: TargetSize | None = None,
    options: FileOptions | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    stream: TextIO | None = None,
    before: Hook = lambda job: None,
    moving: Moving | None = None,
) -> Summary:
    """Upscales files, folders and glob patterns; see `plan_jobs` for `output` and `TargetSize` for sizes.

    Results appear whole or not at all; a run that was killed is finished by the same call with
    `existing="skip"`. dry_run: only says what would be done. Progress goes to `stream`, by default
    stderr. `before` is called with each photo before it is read. `moving` makes clips and animations of folders,
    after the photos; without it they count as passed over.
    Raises RecipeError for options that do not fit; all else is in the summary.
    """
    options = options or FileOptions()
    begin = time.perf_counter()
    wanted = wanted or TargetSize(scale)
    jobs = plan_jobs(
        inputs,
        output,
        format=options.format,
        suffix=wanted.suffix(engine.scale) if options.suffix is None else options.suffix,
        existing=options.existing,
        recursive=options.recursive,
        compare=options.compare,
        moving=moving,
    )
    if dry_run:
        results = [_result(_Step[_Made](job, failure=job.problem), "planned") for job in jobs]
    else:
        for folder in {job.target.parent for job in jobs if job.target}:
            remove_leftovers(folder)
        note = recorder(ResultRecords())
        photos = [job for job in jobs if not job.moves]
        worker = UpscaleWorker(engine, wanted, options, before, note)
        results = list(run_jobs(photos, worker, ProgressReport(len(photos), stream, quiet)))
        if moving is not None:
            results += run_moving([job for job in jobs if job.moves], moving, note)
    others = passed_over(inputs, options.recursive, output, moving)
    return Summary(tuple(results), time.perf_counter() - begin, tuple(map(str, others)))


def recorder(records: ResultRecords) -> Hook:
    """Notes results in the record of their folder, after they are written."""
    lock = threading.Lock()

    def note(job: UpscaleJob) -> None:
        if job.state is not None and job.target is not None:
            with lock:
                records.of(job.target.parent).add(job.target, job.source, job.state)

    return note


@dataclass(frozen=True)
class UpscaleWorker:
    """What is done with each photo: read, upscale, write. One device, so one thread at a time in `upscale`.

    fetch is called before a photo is read, deliver after its result is written; what they raise of
    RaySRError is the photo's failure.
    """

    engine: Engine
    wanted: TargetSize
    options: FileOptions
    fetch: Hook = lambda job: None
    deliver: Hook = lambda job: None

    def read(self, job: UpscaleJob) -> Photo:
        self.fetch(job)
        photo = read_photo(job.source, self.options.limits)
        size = self.wanted.of(photo, self.engine.scale)
        check_result_size(job.format, *size[::-1])  # before the work, not after it
        if self.options.consistency:
            check_enlarges(photo.pixels, size)
        if self._is_large(photo) and (self.options.consistency or self.options.compare):
            raise ResourceError(f"{size[1]}x{size[0]} is too large for --consistency and --compare: leave them out")
        return photo

    def upscale(self, job: UpscaleJob, photo: Photo, progress: Callable[[float], None]) -> _Made:
        size = self.wanted.of(photo, self.engine.scale)
        warnings = (*photo.warnings, *left_out(photo, job.format, self.options.metadata))
        if self.options.mark:
            photo = replace(photo, xmp=mark_xmp(photo.xmp))
        if self._is_large(photo):
            bands = upscale_in_bands(photo, self.engine, size, progress)
            write_bands(_target(job), photo, size, bands, format=job.format, **self._encoding())
            return _Made(size, warnings)
        consistent = self.options.consistency
        result = upscale_photo(photo, self.engine, wanted=self.wanted, consistency=consistent, progress=progress)
        return _Made(
            size,
            warnings,
            result,
            side_by_side(photo, result) if self.options.compare else None,
            consistency_db(result.pixels, photo.pixels) if consistent else None,
        )

    def write(self, job: UpscaleJob, made: _Made) -> _Made:
        """Writes what is not written yet."""
        if made.photo is not None:
            write_photo(_target(job), made.photo, format=job.format, **self._encoding())
        if made.comparison is not None and job.comparison is not None:
            write_photo(job.comparison, made.comparison)
        self.deliver(job)
        return replace(made, photo=None, comparison=None)

    def _is_large(self, photo: Photo) -> bool:
        """Whether the result, or the network's before it is resized, is too large to be held."""
        network = photo.height * self.engine.scale, photo.width * self.engine.scale
        samples = photo.channels + (photo.alpha is not None)
        sizes = (self.wanted.of(photo, self.engine.scale), network)
        pixels = max(height * width for height, width in sizes)
        return pixels * samples * photo.pixels.itemsize > self.options.in_memory

    def _encoding(self) -> dict[str, Any]:
        names = ("quality", "lossless", "metadata", "background")
        return {name: getattr(self.options, name) for name in names}


def run_jobs(jobs: Sequence[UpscaleJob], worker: UpscaleWorker, report: ProgressReport) -> Iterator[FileResult]:
    """Runs jobs through the three stages and gives their results in order."""

    def read(job: UpscaleJob) -> _Step[Photo]:
        return _Step[Photo](job, failure=job.problem).go(lambda: worker.read(job))

    def upscale(step: _Step[Photo]) -> _Step[_Made]:
        further = step.go(lambda: worker.upscale(step.job, step.ready, report.advance))
        report.next()
        return further

    def write(step: _Step[_Made]) -> FileResult:
        return _result(step.go(lambda: worker.write(step.job, step.ready)), "done")

    try:
        with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(count := _writers()) as writers:
            try:
                upscaled = map(upscale, _ahead(readers, read, jobs))
                for result in _ahead(writers, write, upscaled, count):
                    report.finish(result)
                    yield result
            except BaseException:  # Ctrl-C or a signal: what has not begun does not begin any more
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        report.close()


def run_moving(jobs: Sequence[UpscaleJob], moving: Moving, note: Hook) -> Iterator[FileResult]:
    """Makes clips and animations, one after the other; `note` hears of those that are done."""
    for job in jobs:
        if job.problem or job.skip or job.target is None:
            yield _result(_Step[_Made](job, failure=job.problem), "done")
            continue
        result = moving.upscale(job.source, job.target)
        if result.status == "done":
            note(job)
        yield result


def _writers() -> int:
    """Photos that are encoded at the same time: on half of the cores, two at least."""
    return max(_AHEAD, min(_MOST_WRITERS, len(os.sched_getaffinity(0)) // 2))


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], most: int = _AHEAD
) -> Iterator[Result]:
    """`map` in a pool, in order, that takes only `most` items more than its results are asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _target(job: UpscaleJob) -> Path:
    """Where the result goes, in a folder that is there."""
    assert job.target is not None
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{job.target.parent}: cannot be made ({error.strerror or error})") from None
    return job.target


def _result(step: _Step[_Made], status: Literal["done", "planned"]) -> FileResult:
    job, made = step.job, step.value
    source, target = str(job.source), None if job.target is None else str(job.target)
    if step.failure:
        return FileResult(source, target, "failed", step.failure, seconds=step.seconds)
    if job.skip:
        return FileResult(source, target, "skipped", "the result is there already")
    if made is None:
        return FileResult(source, target, status)
    size = made.size[::-1]
    return FileResult(source, target, status, "", *size, step.seconds, made.warnings, made.consistency_db)
