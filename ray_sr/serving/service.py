"""One request: its body and options, what it may take, and the picture or the job that it becomes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from starlette.requests import Request

from ray_sr.serving.admission import AdmissionQueue, Budget, Lease
from ray_sr.serving.job_client import JobClient
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.keys import Client, KeyRing
from ray_sr.serving.options import JobLimits, JobQuery, ServiceOptions, UpscaleQuery
from ray_sr.serving.pipeline import Pipeline, with_format
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import AcceptedResponse, accepted_response_of, read_picture
from ray_sr.serving.responses import Answer
from ray_sr.serving.router import Catalogue
from ray_sr.serving.telemetry import Metrics, open_access_log
from ray_sr.serving.webhooks import check_address

_CODECS = 32


def codec_processes(options: ServiceOptions) -> int:
    """Of one ingress replica: its share of the cores, unless the options say otherwise."""
    cores = len(os.sched_getaffinity(0))
    return options.codec_processes or min(_CODECS, max(1, cores // options.most_ingresses))


class Service:
    """State of one ingress replica: its share of the limits, what is under way, its codec processes."""

    def __init__(self, catalogue: Catalogue, jobs: JobClient, options: ServiceOptions) -> None:
        """Raises InputError and RecipeError for a file of keys that cannot be used."""
        self.catalogue = catalogue
        self.jobs = jobs
        self.limits = options.limits
        self.cors_origins = options.cors_origins
        self._webhook_origins = options.webhook_origins
        self.keys = KeyRing(options.keys)
        self.metrics = Metrics()
        self.log = open_access_log(options.access_log)
        share = self.limits.share(options.most_ingresses)
        self._bytes = Budget(share.in_flight_bytes, "bytes")
        self._pixels = Budget(share.in_flight_pixels, "pixels")
        self._pipeline = Pipeline(catalogue, self.metrics, codec_processes(options))

    def close(self) -> None:
        """Ends the codec processes."""
        self._pipeline.close()

    async def upscale(
        self, request: Request, query: UpscaleQuery, client: Client
    ) -> tuple[Answer, AcceptedResponse]:
        """The answer to one picture, and the form that it was asked in. Raises Problem and PhotoError."""
        accepted = accepted_response_of(request.headers.get("accept", ""), query)
        deadline_s = self.limits.request_deadline_s
        with self._bytes.lease() as lease:
            data, query = await read_picture(request, query, self.limits, lease)
            try:
                async with asyncio.timeout(deadline_s):
                    query = with_format(query, accepted, data)
                    with self._pixels.lease() as pixels:
                        admission = _Admission(pixels, client, self)
                        return await self._pipeline.run(data, query, self.limits, admission), accepted
            except TimeoutError:
                raise Problem("timeout", f"no result within {deadline_s:g} s; send a smaller picture") from None

    async def begin_job(self, request: Request, query: JobQuery, client: Client) -> JobRecord:
        """A job for the picture of the request, or the one that it has begun. Raises Problem and PhotoError."""
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= 255:
            raise Problem("bad-request", "Idempotency-Key must have 1 to 255 characters")
        with self._bytes.lease() as lease:
            data, query = await read_picture(request, query, self.limits, lease)
            if query.webhook is not None:
                check_address(query.webhook, self._webhook_origins)
            query = with_format(query, accepted_response_of("*/*", query), data)
            fingerprint = await self._pipeline.in_thread(_fingerprint, data, query)
            known = await self.jobs.repeated(client.name, key, fingerprint, len(data))
            if known is not None:
                return known
            *_, pixels = await self._pipeline.measure(data, query, self.limits.of_jobs())
            await self.jobs.charge(client, pixels)
            record = JobRecord(
                client=client.name,
                idempotency_key=key,
                fingerprint=fingerprint,
                query=query.of_picture(),
                picture_bytes=len(data),
                root=request.scope.get("root_path", ""),
                webhook=query.webhook,
                expires_at=_latest_end(self.limits.jobs),
            )
            return await self.jobs.begin(record, data)

    def note_pixels(self) -> None:
        """Tells the metrics how much is under way."""
        self.metrics.in_flight.set(self._pixels.taken)


class _Admission:
    """What a request has to pay for its pixels: a place in the queue, a share of what is under way, its quota."""

    def __init__(self, lease: Lease, client: Client, service: Service) -> None:
        self._lease = lease
        self._client = client
        self._service = service

    @asynccontextmanager
    async def of(self, pixels: int, queue: AdmissionQueue) -> AsyncIterator[None]:
        """Under way for the block. Raises Problem: overloaded or rate-limited."""
        with queue.place(pixels):
            self._lease.add(pixels)
            await self._service.jobs.charge(self._client, pixels)
            self._service.note_pixels()
            yield


def _latest_end(limits: JobLimits) -> datetime:
    """When a job is gone at the latest, if all that may wait before it takes as long as it may."""
    return datetime.now(UTC) + timedelta(seconds=limits.kept_s + limits.deadline_s * limits.waiting)


def _fingerprint(picture: bytes, query: UpscaleQuery) -> str:
    return hashlib.sha256(picture + query.model_dump_json().encode()).hexdigest()
