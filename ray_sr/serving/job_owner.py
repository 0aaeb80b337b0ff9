"""The owner of all jobs: one process that holds the table, works on the jobs, and counts the clients' quotas.

Any number of ingress replicas ask it. It may end at any time: Serve starts another one, which finds the jobs in
storage. Work that a former owner had given to a generator replica stops there, since nobody permits it any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from ray_sr.errors import ResourceError
from ray_sr.serving.catalogues import catalogue_of
from ray_sr.serving.job_lease import JobLease
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.job_storage import JobStorage, jobs_location
from ray_sr.serving.job_table import JobTable, OnProgress
from ray_sr.serving.keys import Bucket
from ray_sr.serving.options import ServiceOptions, UpscaleQuery
from ray_sr.serving.pipeline import Pipeline
from ray_sr.serving.problems import Problem
from ray_sr.serving.responses import Answer
from ray_sr.serving.router import in_background
from ray_sr.serving.schemas import Permit
from ray_sr.serving.telemetry import Metrics
from ray_sr.serving.webhooks import Webhooks, read_secret

logger = logging.getLogger(__name__)

_SWEEP_S = 3600


class JobOwner:
    """The deployment: a handle for each model of the options, in their order. Has one replica, never more."""

    def __init__(self, options: ServiceOptions, *generators: DeploymentHandle[Any]) -> None:
        """Raises InputError and ResourceError where the storage of jobs is unusable."""
        limits = options.limits
        self._metrics = Metrics()
        self._limits = limits.of_jobs()
        processes = min(limits.jobs.running, len(os.sched_getaffinity(0)))
        self._pipeline = Pipeline(catalogue_of(options, generators), self._metrics, processes)
        self._buckets: dict[str, Bucket] = {}
        storage = JobStorage(jobs_location(options, serve.get_replica_context().app_name))
        self._sweeping: asyncio.Task[None] | None = None
        self._lease = JobLease(storage, limits.jobs.lease_s, gained=self._gained, lost=self._lost)
        self._table = JobTable(
            limits.jobs, storage, self._work, is_allowed=lambda: self._lease.is_held, ended=self._has_ended
        )
        secret = read_secret(options.webhook_secret) if options.webhook_secret else b""
        self._webhooks = Webhooks(secret, self._table.note_webhook)
        self._keeping = in_background(self._lease.keep())

    def __del__(self) -> None:
        if not hasattr(self, "_keeping"):
            return
        self._keeping.cancel()
        is_idle = not self._table.is_working
        self._stop()
        try:
            if is_idle:  # else replicas may go on for as long as they have been permitted to
                self._lease.release()
        except ResourceError as error:
            logger.warning("the next process has to wait for the jobs: %s", error)
        self._pipeline.close()

    async def _gained(self) -> None:
        await self._table.open()
        for record in self._table.records():
            self._webhooks.tell(record)
        self._sweeping = in_background(self._sweep())

    def _stop(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._webhooks.close()
        self._table.close()

    async def _sweep(self) -> None:
        """Deletes now and then what belongs to no job."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self._table.sweep()
            except ResourceError as error:
                logger.warning("the storage of jobs: %s", error)

    def _lost(self) -> None:
        logger.warning("another process owns the jobs now")
        self._stop()

    async def _work(self, data: bytes, query: UpscaleQuery, on_progress: OnProgress, permit: Permit) -> Answer:
        return await self._pipeline.run(data, query, self._limits, None, on_progress, permit)

    def _has_ended(self, record: JobRecord) -> None:
        self._metrics.jobs.inc(1, {"state": record.state})
        self._webhooks.tell(record)

    # ---------------------------------------------------------------------------- what the ingress asks

    # Problems are values here: what a method raises, Serve logs as a fault of the service.

    async def admit(
        self, client: str, key: str | None, fingerprint: str, length: int
    ) -> JobRecord | Problem | None:
        """See JobTable."""
        try:
            return self._table.admit(client, key, fingerprint, length)
        except Problem as problem:
            return problem

    async def begin(self, record: JobRecord) -> JobRecord | Problem:
        """See JobTable."""
        return await _told(self._table.begin(record))

    async def find(self, id: str, client: str) -> JobRecord | Problem:
        """See JobTable."""
        try:
            return self._table.find(id, client)
        except Problem as problem:
            return problem

    async def cancel(self, id: str, client: str) -> JobRecord | Problem:
        """See JobTable."""
        return await _told(self._table.cancel(id, client))

    async def watch(self, id: str, client: str) -> AsyncIterator[JobRecord | Problem]:
        """See JobTable."""
        try:
            async for record in self._table.watch(id, client):
                yield record
        except Problem as problem:
            yield problem

    async def charge(self, client: str, rate: int, pixels: int) -> Problem | None:
        """Takes pixels from the quota of a client. Problem: rate-limited."""
        bucket = self._buckets.get(client)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[client] = Bucket(rate)
        try:
            bucket.take(pixels)
        except Problem as problem:
            return problem
        return None

    # ---------------------------------------------------------------------------- what the generators ask

    async def permits(self, id: str, run: str) -> bool:
        """Whether the work on a job shall go on."""
        return self._table.permits(id, run)


async def _told(change: Coroutine[Any, Any, JobRecord]) -> JobRecord | Problem:
    """What became of a change, which goes on where nobody waits for it any more."""
    try:
        return await asyncio.shield(change)
    except Problem as problem:
        return problem
