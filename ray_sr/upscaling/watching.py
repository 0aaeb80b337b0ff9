"""Folders that fill: photos are upscaled as they arrive, once each, over restarts.

A photo is taken when it is at rest: its size and time are the same in two looks, `settle_s` apart. There are no
notifications: those of the system do not tell of what other machines write to a shared folder. What is done is
kept in the record of the results' folder, so a watch that was killed is taken up by the same call.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ray_sr.errors import InputError, ResourceError
from ray_sr.storage.local import remove_leftovers
from ray_sr.storage.lock import locked
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.files import FileOptions, FileResult, Summary, UpscaleWorker, recorder, run_jobs, run_moving
from ray_sr.upscaling.finding import FoundPhoto, find_photos
from ray_sr.upscaling.moving import Moving
from ray_sr.upscaling.naming import UpscaleJob, check_names, plan_found
from ray_sr.upscaling.progress import ProgressReport
from ray_sr.upscaling.record import FileState, ResultRecords
from ray_sr.upscaling.target_size import TargetSize

SETTLE_S = 2.0
LOCK = ".ray-sr-watch.lock"


class Watch:
    """Upscales what is in folders and what comes into them, until it is stopped.

    options: `existing` counts as "skip" unless it is "overwrite", which makes a photo that has changed anew.
    settle_s: seconds for which a photo has to be unchanged. Raises InputError where a folder is none,
    RecipeError for names that cannot be meant.
    """

    def __init__(
        self,
        folders: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        engine: Engine,
        *,
        wanted: TargetSize | None = None,
        options: FileOptions | None = None,
        settle_s: float = SETTLE_S,
        quiet: bool = False,
        stream: TextIO | None = None,
        moving: Moving | None = None,
    ) -> None:
        self._options, self._wanted = options or FileOptions(), wanted or TargetSize()
        self._suffix = self._wanted.suffix(engine.scale) if self._options.suffix is None else self._options.suffix
        check_names(folders, output, self._options.format, self._suffix)
        for folder in folders:
            if not os.path.isdir(folder):
                raise InputError(f"{folder}: is no folder, and --watch needs folders that photos arrive in")
        self._folders, self._output, self._engine = folders, Path(output), engine
        self._settle_s, self._quiet, self._stream = settle_s, quiet, stream or sys.stderr
        self._moving = moving
        self._records = ResultRecords()
        self._seen: dict[Path, tuple[FileState, float]] = {}
        self._failed: dict[Path, FileState | None] = {}
        self._told: set[tuple[Path, str]] = set()
        self._stopped = threading.Event()
        self._results: dict[str, FileResult] = {}
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """Ends `run` when the photos at rest are done; from any thread."""
        self._stopped.set()

    @property
    def summary(self) -> Summary:
        """What became of each photo so far; of one that was tried several times, the last."""
        return Summary(tuple(self._results.values()), time.perf_counter() - self._begin)

    def run(self) -> Summary:
        """Watches until `stop`. A photo that fails is tried again when it changes.

        Raises ResourceError where another process watches for the same output.
        """
        try:
            self._output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self._output}: cannot be made ({error.strerror or error})") from None
        with locked(str(self._output / LOCK), f"the watch into {self._output}", wait=False):
            remove_leftovers(self._output)
            while True:
                last = self._stopped.is_set()
                self._upscale(self._jobs())
                if last:
                    return self.summary
                self._stopped.wait(self._settle_s)

    def _jobs(self) -> list[UpscaleJob]:
        """Jobs for the photos at rest that have no result."""
        found = find_photos(self._folders, self._options.recursive, self._output, self._records, self._moving)
        for photo in found:
            if photo.problem and not os.path.isdir(photo.path):
                self._tell(photo.path, photo.problem)
        there = [photo for photo in found if photo.problem is None]
        now = time.monotonic()
        resting = {photo.path for photo in there if self._is_at_rest(photo, now)}
        self._seen = {path: seen for path, seen in self._seen.items() if path in {photo.path for photo in there}}
        format, overwrite = self._options.format or "png", self._options.existing == "overwrite"
        jobs = plan_found(there, self._output, self._records, format, self._suffix, overwrite, self._moving)
        return [job for job in jobs if job.source in resting and self._failed.get(job.source) != job.state]

    def _is_at_rest(self, photo: FoundPhoto, now: float) -> bool:
        state = FileState.of(photo.path)
        if state is None:
            return False
        before, since = self._seen.get(photo.path, (None, now))
        self._seen[photo.path] = state, since if before == state else now
        return before == state and now - since >= self._settle_s

    def _upscale(self, jobs: Sequence[UpscaleJob]) -> None:
        if not jobs:
            return
        note = recorder(self._records)
        for job in jobs:
            if job.skip:  # its result was written by a run that was killed before it could note that
                note(job)
        photos = [job for job in jobs if not job.moves]
        report = ProgressReport(len(photos), self._stream, self._quiet)
        worker = UpscaleWorker(self._engine, self._wanted, self._options, deliver=note)
        self._take(photos, run_jobs(photos, worker, report))
        if self._moving is not None:
            moving = [job for job in jobs if job.moves]
            self._take(moving, run_moving(moving, self._moving, note))

    def _take(self, jobs: Sequence[UpscaleJob], results: Iterator[FileResult]) -> None:
        for job, result in zip(jobs, results, strict=True):
            self._results[result.source] = result
            if result.status == "failed":
                self._failed[job.source] = job.state

    def _tell(self, path: Path, problem: str) -> None:
        if (path, problem) not in self._told:
            self._told.add((path, problem))
            print(f"{path}: {problem}", file=self._stream, flush=True)
