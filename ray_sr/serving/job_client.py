"""The jobs as an ingress sees them: it asks their owner, and reads finished results from storage itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar, cast

import pyarrow as pa
from ray.serve.handle import DeploymentHandle

from ray_sr.errors import ResourceError
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.job_storage import JobStorage
from ray_sr.serving.keys import Bucket, Client
from ray_sr.serving.problems import Problem
from ray_sr.serving.router import answer_of, serve_errors

T = TypeVar("T")

PATIENCE_S = 15.0  # for an owner that is being replaced
_PAUSE_S = 0.3
_FIND_PATIENCE_S = 2.0
_QUOTA_PATIENCE_S = 1.0


class JobClient:
    """What one of `ingresses` replicas knows of jobs and quotas. Keeps nothing that matters."""

    def __init__(self, owner: DeploymentHandle[Any], storage: JobStorage, ingresses: int) -> None:
        self._owner = owner
        self._storage = storage
        self._ingresses = ingresses
        self._shares: dict[str, Bucket] = {}

    async def repeated(self, client: str, key: str | None, fingerprint: str, length: int) -> JobRecord | None:
        """The job that this client has begun with the same key. Raises Problem where there is no room for one."""
        known = await self._ask(lambda: self._owner.admit.remote(client, key, fingerprint, length))
        return cast(JobRecord | None, known)

    async def begin(self, record: JobRecord, picture: bytes) -> JobRecord:
        """Begins a job. The picture is in storage before the owner hears of it. Raises Problem."""
        await self._stored(self._storage.write_picture, record.id, picture)
        try:
            begun = cast(JobRecord, await self._ask(lambda: self._owner.begin.remote(record)))
        except Problem as problem:
            if problem.kind != "starting":  # else it may have been begun: its picture stays until it is swept away
                await self._stored(self._storage.delete_picture, record.id)
            raise
        if begun.id != record.id:  # the same request came twice at the same time
            await self._stored(self._storage.delete_picture, record.id)
        return begun

    async def find(self, id: str, client: str) -> JobRecord:
        """The client's job; while its owner is being replaced, as storage knows it. Raises Problem."""
        try:
            return cast(JobRecord, await self._ask(lambda: self._owner.find.remote(id, client), _FIND_PATIENCE_S))
        except Problem as problem:
            if problem.kind != "starting":
                raise
            record = await self._stored(self._storage.load, id)
            if record is None or record.client != client:
                raise
            return record

    async def cancel(self, id: str, client: str) -> JobRecord:
        """Ends the work on a job, or forgets one that has ended. Raises Problem."""
        return cast(JobRecord, await self._ask(lambda: self._owner.cancel.remote(id, client), again=False))

    async def watch(self, id: str, client: str, silence_s: float) -> AsyncIterator[JobRecord | None]:
        """The job now and after each change until it has ended; None where nothing happens for so long.

        Goes on with the next owner where one is replaced. Raises Problem.
        """
        quiet_since = time.monotonic()
        while True:
            steps = self._owner.options(stream=True).watch.remote(id, client)
            try:
                with serve_errors():
                    async for record in _with_pauses(steps, silence_s):
                        yield record
                        quiet_since = time.monotonic()
                        if record is not None and record.ended:
                            return
            except Problem as problem:
                if problem.kind != "starting":
                    raise
            finally:
                steps.cancel()
            if time.monotonic() - quiet_since > silence_s:
                yield None
                quiet_since = time.monotonic()
            await asyncio.sleep(_PAUSE_S)

    async def result(self, id: str) -> pa.NativeFile:
        """The result of a job that succeeded, open. Raises Problem (gone)."""
        stream = await self._stored(self._storage.open_result, id)
        if stream is None:
            raise Problem("gone", "the job and its result are not kept any more; send the picture again")
        return stream

    async def write_archive(self, token: str, content: bytes) -> None:
        """Remembers which results are in a ZIP. Raises Problem."""
        await self._stored(self._storage.write_archive, token, content)

    async def read_archive(self, token: str) -> bytes | None:
        """What `write_archive` was given; None where it is not known any more. Raises Problem."""
        return await self._stored(self._storage.read_archive, token)

    async def charge(self, client: Client, pixels: int) -> None:
        """Takes pixels from the client's quota, which the owner counts for all ingress replicas.

        While there is no owner, each replica gives out its own share. Raises Problem (rate-limited).
        """
        rate = client.pixels_per_minute
        if rate is None:
            return
        try:
            charge = partial(self._owner.charge.remote, client.name, rate, pixels)
            await self._ask(charge, _QUOTA_PATIENCE_S, again=False)
        except Problem as problem:
            if problem.kind != "starting":
                raise
            share = max(1, rate // self._ingresses)
            bucket = self._shares.get(client.name)
            if bucket is None or bucket.rate != share:
                bucket = self._shares[client.name] = Bucket(share)
            bucket.take(pixels)

    async def _ask(self, call: Callable[[], Any], patience_s: float = PATIENCE_S, *, again: bool = True) -> Any:
        """The owner's answer; `again`: asked for anew where the owner that was asked is gone. Raises Problem."""
        end = time.monotonic() + patience_s
        while True:
            try:
                async with asyncio.timeout(max(0.1, end - time.monotonic())):
                    with serve_errors():
                        return _unless_problem(await answer_of(call()))
            except TimeoutError:
                raise Problem("starting", "the owner of the jobs is being replaced; try again soon") from None
            except Problem as problem:
                if problem.kind != "starting" or not again or time.monotonic() > end:
                    raise
                await asyncio.sleep(_PAUSE_S)

    async def _stored(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.to_thread(function, *args)
        except ResourceError:
            raise Problem("overloaded", "the storage of jobs does not answer; try again later") from None


async def _with_pauses(steps: Any, silence_s: float) -> AsyncIterator[JobRecord | None]:
    """What a stream brings, and None where that takes so long."""
    stream = steps.__aiter__()
    following: asyncio.Future[JobRecord] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(_next(stream))
            done, _ = await asyncio.wait([following], timeout=silence_s)
            if not done:
                yield None
                continue
            try:
                record = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield record
    finally:
        if following is not None:
            following.cancel()


async def _next(stream: Any) -> JobRecord:
    return cast(JobRecord, _unless_problem(await stream.__anext__()))


def _unless_problem(told: Any) -> Any:
    """What the owner told; raised where it is a Problem."""
    if isinstance(told, Problem):
        raise told
    return told
