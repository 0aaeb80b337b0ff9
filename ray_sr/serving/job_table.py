"""The table of all jobs: bounded in every way, and written to storage before anybody is told of a change.

One process owns it. What the table holds in memory, it finds again in storage when that process has been replaced:
jobs that had not ended are then begun anew.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from ray_sr.errors import ResourceError
from ray_sr.serving.job_records import JobProblem, JobRecord
from ray_sr.serving.job_storage import JobStorage
from ray_sr.serving.options import JobLimits, UpscaleQuery
from ray_sr.serving.problems import RETRY_AFTER_S, Problem, problem_of
from ray_sr.serving.responses import Answer, picture_headers
from ray_sr.serving.schemas import JobState, Permit

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
OnProgress = Callable[[float], None]
Work = Callable[[bytes, UpscaleQuery, OnProgress, Permit], Awaitable[Answer]]
IsAllowed = Callable[[], bool]
Ended = Callable[[JobRecord], None]

_ATTEMPTS = 5  # a job outlives replicas that end while they hold it
_STARTS = 5  # and processes of the owner, unless it is what ends them
_STORAGE_PAUSE_S = 0.25  # after which storage that failed is asked again, and twice as long each time
_REMEMBERED = 4096  # ids of jobs that are gone, to tell them from those that never were


@dataclass(eq=False)
class _Entry:
    """A job in memory. `run` names the work under way; `changed` is replaced whenever the record has changed.

    `version` counts what is to be written, so that of two writes at once the later one stays.
    """

    record: JobRecord
    run: str = ""
    is_ending: bool = False
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None
    version: int = 0
    written: int = 0
    writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def held(self) -> int:
        """Bytes in storage."""
        if self.record.state == "succeeded":
            return self.record.result_bytes or 0
        return 0 if self.record.ended else self.record.picture_bytes

    def change(self, **fields: object) -> None:
        """Changes the record, and wakes whoever waits for that."""
        self.record = self.record.changed(**fields)
        former, self.changed = self.changed, asyncio.Event()
        former.set()


class JobTable:
    """All jobs of the service. For one event loop.

    `is_allowed` tells whether this process owns the jobs at the moment; `ended` hears of each job that has ended.
    """

    def __init__(
        self, limits: JobLimits, storage: JobStorage, work: Work, *, is_allowed: IsAllowed, ended: Ended
    ) -> None:
        self._limits = limits
        self._storage = storage
        self._work = work
        self._is_allowed = is_allowed
        self._ended = ended
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the oldest first
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._is_open = False

    # ---------------------------------------------------------------------------- owning the jobs

    async def open(self) -> None:
        """Takes over what is in storage; work that had not ended is begun anew. Raises ResourceError."""
        records = await asyncio.to_thread(self._storage.load_all)
        for record in records:
            if record.ended and record.expires_at <= datetime.now(UTC):
                await asyncio.to_thread(self._storage.forget, record.id)
                continue
            entry = self._enter(record if record.ended else record.changed(state="queued", progress=0.0))
            if record.ended:
                self._expire_later(entry)
        await self.sweep()
        self._is_open = True
        self._start_waiting()

    async def sweep(self) -> None:
        """Deletes what lies in storage and belongs to no job. Raises ResourceError."""
        await asyncio.to_thread(self._storage.sweep, set(self._entries))

    def close(self) -> None:
        """Stops all work without a word to storage: another process goes on with it."""
        self._is_open = False
        for entry in self._entries.values():
            if entry.task is not None:
                entry.task.cancel()
            if entry.expiry is not None:
                entry.expiry.cancel()
            entry.run = ""
            entry.changed.set()
        self._entries.clear()
        self._keys.clear()

    @property
    def is_working(self) -> bool:
        """Whether work on a job is under way."""
        return any(entry.run for entry in self._entries.values())

    def records(self) -> list[JobRecord]:
        return [entry.record for entry in self._entries.values()]

    # ---------------------------------------------------------------------------- what clients do

    def admit(self, client: str, key: str | None, fingerprint: str, length: int) -> JobRecord | None:
        """The job that this client has begun with the same key; else None, if there is room for one more.

        Raises Problem: idempotency-conflict where the key was used for another request, overloaded, starting.
        """
        self._check_open()
        known = self._entries.get(self._keys.get((client, key or ""), ""))
        if known is None:
            self._make_room(length, records=1)
            return None
        if known.record.fingerprint != fingerprint:
            detail = "the key belongs to another picture or other options; use a new one"
            raise Problem("idempotency-conflict", detail)
        return known.record

    async def begin(self, record: JobRecord) -> JobRecord:
        """Begins a job whose picture is in storage; or tells of the one that was begun with the same id or key.

        Raises Problem, as `admit` does.
        """
        if record.id in self._entries:
            return self._entries[record.id].record
        known = self.admit(record.client, record.idempotency_key, record.fingerprint, record.picture_bytes)
        if known is not None:
            return known
        entry = self._enter(record)
        try:
            await self._save(entry, record)
        except ResourceError as error:
            self._leave(entry)
            raise _no_storage(error) from None
        self._start_waiting()
        return entry.record

    def find(self, id: str, client: str) -> JobRecord:
        """The client's job of this id. Raises Problem: not-found, or gone where it has been."""
        return self._entry_of(id, client).record

    async def cancel(self, id: str, client: str) -> JobRecord:
        """Ends the work on a job; of one that has ended, the result is forgotten. Raises Problem."""
        entry = self._entry_of(id, client)
        while entry.is_ending and not entry.record.ended:
            await entry.changed.wait()
        if entry.record.ended:
            record = entry.record
            await self._forget(entry)
            return record
        if entry.task is not None:
            entry.task.cancel()
        await self._end(entry, "canceled")
        self._start_waiting()
        return entry.record

    async def watch(self, id: str, client: str) -> AsyncIterator[JobRecord]:
        """The job now and after each change, until it has ended. Raises Problem."""
        entry = self._entry_of(id, client)
        while True:
            changed = entry.changed
            yield entry.record
            if entry.record.ended:
                return
            await changed.wait()
            self._check_open()

    def permits(self, id: str, run: str) -> bool:
        """Whether this is the work on the job that shall go on."""
        entry = self._entries.get(id)
        return bool(run) and entry is not None and entry.run == run and self._is_open and self._is_allowed()

    # ---------------------------------------------------------------------------- work

    def _start_waiting(self) -> None:
        """Begins the work on as many jobs as may run, the oldest first."""
        entries = list(self._entries.values())
        free = self._limits.running - sum(entry.record.state == "running" for entry in entries)
        for entry in [entry for entry in entries if entry.record.state == "queued"][: max(0, free)]:
            entry.run = secrets.token_hex(8)
            entry.change(state="running", starts=entry.record.starts + 1)
            entry.task = _apart(self._run(entry))

    async def _run(self, entry: _Entry) -> None:
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                result = await self._try(entry)
                data = result.encoded.data
                self._make_room(len(data), instead=entry)
                await self._insist(self._storage.write_result, entry.record.id, data)
        except TimeoutError:
            await self._fail(entry, Problem("timeout", f"no result within {self._limits.deadline_s:g} s"))
        except Exception as error:
            await self._fail(entry, problem_of(error))
        else:
            done = {"progress": 1.0, "result_bytes": len(data), "headers": picture_headers(result)}
            await self._end(entry, "succeeded", **done)
        self._start_waiting()

    async def _fail(self, entry: _Entry, problem: Problem) -> None:
        await self._end(entry, "failed", problem=JobProblem.of(problem))

    async def _try(self, entry: _Entry) -> Answer:
        """The work, begun anew where a replica or a codec process was lost or busy."""
        if entry.record.starts > _STARTS:
            raise Problem("internal", f"the process that worked on the picture ended {_STARTS} times")
        await self._insist(self._save_now, entry, entry.record, self._next_version(entry))
        picture = await self._insist(self._storage.read_picture, entry.record.id)
        if picture is None:
            raise Problem("gone", "the picture of the job is not in its storage any more; send it again")

        attempts, is_begun = 0, False

        def on_progress(share: float) -> None:
            nonlocal is_begun
            is_begun, share = True, min(share, 0.999)
            if share > entry.record.progress:
                entry.change(progress=share)

        while True:
            try:
                permit = Permit(entry.record.id, entry.run, self._limits.lease_s)
                return await self._work(picture, entry.record.query, on_progress, permit)
            except Problem as problem:
                # While there is no replica at all, it is waited for as long as the job may take.
                attempts += is_begun or problem.kind != "starting"
                if problem.status != 503 or attempts == _ATTEMPTS:
                    raise
                is_begun, entry.run = False, secrets.token_hex(8)  # where the former work is not lost, it ends now
                await asyncio.sleep(RETRY_AFTER_S * max(1, attempts))

    async def _end(self, entry: _Entry, state: JobState, **fields: object) -> None:
        """The last word on a job. It is in storage before it is told."""
        if entry.is_ending or not self._is_open:
            return
        entry.is_ending, entry.run = True, ""
        due = "due" if entry.record.webhook else "none"
        expires = datetime.now(UTC) + timedelta(seconds=self._limits.kept_s)
        record = entry.record.changed(state=state, expires_at=expires, webhook_state=due, **fields)
        if not await self._save_at_last(entry, record):
            return
        entry.record = record
        entry.change()
        self._expire_later(entry)
        self._ended(record)

    # ---------------------------------------------------------------------------- storage

    async def _save(self, entry: _Entry, record: JobRecord) -> None:
        await asyncio.to_thread(self._save_now, entry, record, self._next_version(entry))

    def _next_version(self, entry: _Entry) -> int:
        entry.version += 1
        return entry.version

    def _save_now(self, entry: _Entry, record: JobRecord, version: int) -> None:
        """Writes a record unless a later one has been: who waits for a write may be cancelled meanwhile."""
        with entry.writing:
            if version > entry.written:
                self._storage.save(record)
                entry.written = version

    async def _save_at_last(self, entry: _Entry, record: JobRecord) -> bool:
        """Writes the end of a job as soon as the storage takes it; then its picture is not needed any more.

        False where the jobs belong to another process before that.
        """
        for attempt in itertools.count(1):
            if not self._is_open:
                return False
            try:
                await self._save(entry, record)
                await asyncio.to_thread(self._storage.delete_picture, record.id)
                return True
            except ResourceError as error:
                logger.warning("the end of a job waits for its storage: %s", error)
                await asyncio.sleep(min(_STORAGE_PAUSE_S * 2**attempt, 30))
        raise AssertionError("unreachable")

    async def _insist(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What storage gives, asked several times. Raises Problem (overloaded)."""
        for attempt in range(_ATTEMPTS):
            try:
                return await asyncio.to_thread(function, *args, **kwargs)
            except ResourceError as error:
                failed = error
                await asyncio.sleep(_STORAGE_PAUSE_S * 2**attempt)
        raise _no_storage(failed)

    async def note_webhook(self, id: str, state: str) -> None:
        """Remembers what became of the message about a job's end."""
        entry = self._entries.get(id)
        if entry is not None:
            entry.change(webhook_state=state)
            await self._save(entry, entry.record)

    # ---------------------------------------------------------------------------- bounds

    def _enter(self, record: JobRecord) -> _Entry:
        entry = self._entries[record.id] = _Entry(record)
        if record.idempotency_key:
            self._keys[record.client, record.idempotency_key] = record.id
        return entry

    def _leave(self, entry: _Entry) -> None:
        self._entries.pop(entry.record.id, None)
        self._keys = {key: id for key, id in self._keys.items() if id != entry.record.id}

    def _check_open(self) -> None:
        if not self._is_open:
            raise Problem("starting", "the jobs are being taken over from a process that ended; try again soon")

    def _entry_of(self, id: str, client: str) -> _Entry:
        self._check_open()
        entry = self._entries.get(id)
        if entry is not None and entry.record.client == client:
            return entry
        if id in self._gone:
            raise Problem("gone", "the job and its result are not kept any more; send the picture again")
        raise Problem("not-found", "there is no such job, or it was kept for its time; then send the picture again")

    def _make_room(self, length: int, records: int = 0, instead: _Entry | None = None) -> None:
        """Forgets ended jobs, the oldest first, until there is room. Raises Problem (overloaded)."""
        waiting = sum(not entry.record.ended for entry in self._entries.values())
        if records and waiting >= self._limits.waiting:
            raise Problem("overloaded", f"{waiting} jobs are waiting; try again later", retry_after=30)
        length -= instead.held if instead else 0
        for entry in [entry for entry in self._entries.values() if entry.record.ended]:
            if self._fits(length, records):
                break
            self._leave(entry)
            self._forget_later(entry)
        if not self._fits(length, records):
            raise Problem("overloaded", "no room for the pictures of more jobs; try again later", retry_after=30)

    def _fits(self, length: int, records: int) -> bool:
        held = sum(entry.held for entry in self._entries.values())
        return held + length <= self._limits.bytes and len(self._entries) + records <= self._limits.kept

    def _expire_later(self, entry: _Entry) -> None:
        seconds = (entry.record.expires_at - datetime.now(UTC)).total_seconds()
        loop = asyncio.get_running_loop()
        entry.expiry = loop.call_later(max(0.0, seconds), self._forget_later, entry)

    def _forget_later(self, entry: _Entry) -> None:
        task = _apart(self._forget(entry))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _forget(self, entry: _Entry) -> None:
        """Deletes all of a job, in memory at once. What storage does not delete, it will when it is opened anew."""
        self._leave(entry)
        if entry.expiry is not None:
            entry.expiry.cancel()
        self._gone[entry.record.id] = None
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        try:
            await asyncio.to_thread(self._storage.forget, entry.record.id)
        except ResourceError as error:
            logger.warning("a job that has expired is still there: %s", error)


def _apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """The work as a task of its own. In the context of a request, Serve would end it when that client leaves."""
    return asyncio.create_task(work, context=contextvars.Context())


def _no_storage(error: ResourceError) -> Problem:
    logger.warning("the storage of jobs: %s", error)
    return Problem("overloaded", "the storage of jobs does not answer; try again later")
