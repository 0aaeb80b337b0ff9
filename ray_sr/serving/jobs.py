"""Jobs: pictures that are too large to wait for. A table in the memory of the ingress, bounded in every way.

Pictures and results lie in temporary files without a name, so they vanish with the process, however it ends.
When the ingress ends, its jobs are gone: their addresses then answer 404.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import IO

from ray_sr.serving.options import JobLimits, UpscaleQuery
from ray_sr.serving.problems import RETRY_AFTER_S, Problem, problem_of
from ray_sr.serving.responses import Answer, picture_headers
from ray_sr.serving.router import in_background
from ray_sr.serving.schemas import JobState, JobStatus, ProblemDocument

logger = logging.getLogger(__name__)

OnProgress = Callable[[float], None]
Work = Callable[[bytes, UpscaleQuery, OnProgress], Awaitable[Answer]]

_ATTEMPTS = 5  # a job outlives replicas that end while they hold it
_REMEMBERED = 4096  # ids of jobs that are gone, to tell them from those that never were


@dataclass(eq=False)
class Result:
    """The picture that a job made: headers of its answer, and a file of `size` bytes."""

    headers: dict[str, str]
    file: IO[bytes]
    size: int

    def pieces(self, length: int = 1 << 20) -> AsyncIterator[bytes]:
        """The bytes, for as many readers at the same time as there are."""
        return _pieces(self, length)


async def _pieces(result: Result, length: int) -> AsyncIterator[bytes]:
    for position in range(0, result.size, length):
        yield await asyncio.to_thread(os.pread, result.file.fileno(), length, position)


@dataclass(eq=False)
class Job:
    """One job. `changed` is set, and replaced by a new one, whenever what its status shows has changed."""

    id: str
    owner: str
    query: UpscaleQuery
    picture: IO[bytes] | None
    held: int
    expires: datetime
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: JobState = "queued"
    progress: float = 0.0
    result: Result | None = None
    problem: Problem | None = None
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    def status(self, root: str) -> JobStatus:
        """What the client sees; `root` is the path under which the service lies."""
        error = self.problem.document("") if self.problem else None
        return JobStatus(
            id=self.id,
            status=self.state,
            progress=round(self.progress, 4),
            created_at=self.created,
            expires_at=self.expires,
            result_url=f"{root}/v1/jobs/{self.id}/result" if self.result else None,
            error=ProblemDocument(**error) if error else None,
        )

    def note(self) -> None:
        """Wakes whoever waits for a change."""
        former, self.changed = self.changed, asyncio.Event()
        former.set()


class Jobs:
    """All jobs of one ingress."""

    def __init__(self, limits: JobLimits, work: Work, ended: Callable[[JobState], None]) -> None:
        self._limits = limits
        self._work = work
        self._ended = ended
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # the oldest first
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._running = asyncio.Semaphore(limits.running)
        self._bytes = 0

    def __contains__(self, id: str) -> bool:
        return id in self._jobs

    def repeated(self, owner: str, key: str | None, picture: bytes, query: UpscaleQuery) -> Job | None:
        """The job that this client has begun with the same key. Raises Problem where it was another request."""
        known = self._keys.get((owner, key)) if key else None
        if known is None or known[0] not in self._jobs:
            return None
        if known[1] != _fingerprint(picture, query):
            raise Problem(
                "idempotency-conflict", "the key belongs to another picture or other options; use a new one"
            )
        return self._jobs[known[0]]

    def begin(self, owner: str, key: str | None, picture: bytes, query: UpscaleQuery) -> Job:
        """A new job, at work as soon as others are done. Raises Problem (overloaded)."""
        waiting = sum(not job.ended for job in self._jobs.values())
        if waiting >= self._limits.waiting:
            raise Problem("overloaded", f"{waiting} jobs are waiting; try again later", retry_after=30)
        self._make_room(len(picture), records=1)
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(picture)
        file.flush()
        longest = timedelta(seconds=self._limits.kept_s + self._limits.deadline_s * self._limits.waiting)
        expires = datetime.now(UTC) + longest
        job = Job(secrets.token_urlsafe(16), owner, query, file, len(picture), expires)
        self._bytes += job.held
        self._jobs[job.id] = job
        if key:
            self._keys[owner, key] = job.id, _fingerprint(picture, query)
        job.task = in_background(self._run(job))
        return job

    def find(self, id: str, owner: str) -> Job:
        """The client's job of this id. Raises Problem: not-found, or gone where it has been."""
        job = self._jobs.get(id)
        if job is not None and job.owner == owner:
            return job
        if id in self._gone:
            raise Problem("gone", "the job and its result are not kept any more; send the picture again")
        lost = "there is no such job; a restart of the service ends all jobs: then send the picture again"
        raise Problem("not-found", lost)

    def cancel(self, job: Job) -> None:
        """Ends the work on a job; of one that has ended, the result is forgotten."""
        if job.ended:
            self._forget(job)
            return
        assert job.task is not None
        job.task.cancel()
        self._end(job, "canceled")

    async def changes(self, job: Job, patience_s: float) -> AsyncIterator[bool]:
        """True now and after each change until the job has ended; False where nothing happens for so long."""
        while True:
            changed = job.changed
            yield True
            if job.ended:
                return
            while not await _happens(changed, patience_s):
                yield False

    async def _run(self, job: Job) -> None:
        def progress(share: float) -> None:
            job.progress = max(job.progress, min(share, 0.999))
            job.note()

        try:
            async with self._running:
                job.state = "running"
                job.note()
                async with asyncio.timeout(self._limits.deadline_s):
                    answer = await self._try(job, progress)
                    await self._keep(job, answer)
        except TimeoutError:
            job.problem = Problem("timeout", f"no result within {self._limits.deadline_s:g} s")
            self._end(job, "failed")
        except Exception as error:
            job.problem = problem_of(error)
            self._end(job, "failed")
        else:
            job.progress = 1.0
            self._end(job, "succeeded")

    async def _try(self, job: Job, progress: OnProgress) -> Answer:
        """The work, begun anew where a replica or a codec process was lost or busy."""
        assert job.picture is not None
        picture = await asyncio.to_thread(os.pread, job.picture.fileno(), job.held, 0)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._work(picture, job.query, progress)
            except Problem as problem:
                if problem.status != 503 or attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(RETRY_AFTER_S * attempt)
        raise AssertionError("unreachable")

    async def _keep(self, job: Job, answer: Answer) -> None:
        data = answer.encoded.data
        self._release(job)
        self._make_room(len(data))
        file = tempfile.TemporaryFile()  # noqa: SIM115
        await asyncio.to_thread(file.write, data)
        file.flush()
        job.result = Result(picture_headers(answer), file, len(data))
        job.held = len(data)
        self._bytes += job.held

    def _end(self, job: Job, state: JobState) -> None:
        if job.ended:
            return
        job.state = state
        if job.result is None:
            self._release(job)
        job.expires = datetime.now(UTC) + timedelta(seconds=self._limits.kept_s)
        asyncio.get_running_loop().call_later(self._limits.kept_s, self._forget, job)
        self._ended(state)
        job.note()

    def _release(self, job: Job) -> None:
        self._bytes -= job.held
        job.held, job.picture = 0, None

    def _make_room(self, length: int, records: int = 0) -> None:
        """Forgets ended jobs, the oldest first, until there is room. Raises Problem (overloaded)."""
        for job in [job for job in self._jobs.values() if job.ended]:
            if self._fits(length, records):
                break
            self._forget(job)
        if not self._fits(length, records):
            raise Problem("overloaded", "no room for the pictures of more jobs; try again later", retry_after=30)

    def _fits(self, length: int, records: int) -> bool:
        return self._bytes + length <= self._limits.bytes and len(self._jobs) + records <= self._limits.kept

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is None:
            return
        self._release(job)
        self._keys = {key: value for key, value in self._keys.items() if value[0] != job.id}
        self._gone[job.id] = None
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)


def _fingerprint(picture: bytes, query: UpscaleQuery) -> str:
    return hashlib.sha256(picture + query.model_dump_json().encode()).hexdigest()


async def _happens(event: asyncio.Event, patience_s: float) -> bool:
    try:
        async with asyncio.timeout(patience_s):
            return await event.wait()
    except TimeoutError:
        return False
