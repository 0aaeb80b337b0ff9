"""One request from body to answer: read, measure, admit, decode, upscale, encode."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from ray_sr import images
from ray_sr.images.headers import Header
from ray_sr.serving import codec
from ray_sr.serving.admission import AdmissionQueue, Budget, Lease
from ray_sr.serving.codec_pool import CodecPool
from ray_sr.serving.jobs import Job, Jobs, OnProgress
from ray_sr.serving.keys import Client, KeyRing
from ray_sr.serving.options import Format, ServiceLimits, ServiceOptions, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import AcceptedResponse, picture_in, read_body, wish_of
from ray_sr.serving.responses import Answer
from ray_sr.serving.router import Catalogue, Router
from ray_sr.serving.schemas import ModelInfo, ScaleChanged, Upscaled
from ray_sr.serving.telemetry import Metrics, open_access_log

P = ParamSpec("P")
T = TypeVar("T")

_CODECS = 32
_TAKE_OVERS = 5  # of other scales that one request bears


class Service:
    """State of one ingress replica: its limits, what is under way, its codec processes, its generators."""

    def __init__(self, catalogue: Catalogue, options: ServiceOptions) -> None:
        """Raises InputError and RecipeError for a file of keys that cannot be used."""
        self.catalogue = catalogue
        self.limits = options.limits
        self.keys = KeyRing(options.keys)
        self.metrics = Metrics()
        self.log = open_access_log(options.access_log)
        self.jobs = Jobs(self.limits.jobs, self._work_on_job, self._count_job)
        self._bytes = Budget(self.limits.in_flight_bytes, "bytes")
        self._pixels = Budget(self.limits.in_flight_pixels, "pixels")
        processes = options.codec_processes or min(_CODECS, len(os.sched_getaffinity(0)))
        self._codec = CodecPool(processes)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="headers")

    def close(self) -> None:
        """Ends the codec processes."""
        self._codec.close()

    async def upscale(
        self, request: Request, query: UpscaleQuery, client: Client
    ) -> tuple[Answer, AcceptedResponse]:
        """The answer to one picture, and the form that it was asked in. Raises Problem and PhotoError."""
        accept = request.headers.get("accept", "")
        wish = wish_of(accept, query)
        deadline_s = self.limits.request_deadline_s
        with self._bytes.lease() as lease:
            body = await read_body(request, self.limits, lease)
            try:
                async with asyncio.timeout(deadline_s):
                    data, query = await self._picture(request, body, query)
                    query = _with_format(query, wish, data)
                    with self._pixels.lease() as pixels:
                        return await self._work(data, query, self.limits, _Admission(pixels, client)), wish
            except TimeoutError:
                raise Problem("timeout", f"no result within {deadline_s:g} s; send a smaller picture") from None

    async def begin_job(self, request: Request, query: UpscaleQuery, client: Client) -> Job:
        """A job for the picture of the request, or the one that it has begun. Raises Problem and PhotoError."""
        wish = wish_of("*/*", query)
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= 255:
            raise Problem("bad-request", "Idempotency-Key must have 1 to 255 characters")
        with self._bytes.lease() as lease:
            body = await read_body(request, self.limits, lease)
            data, query = await self._picture(request, body, query)
            query = _with_format(query, wish, data)
            known = self.jobs.repeated(client.name, key, data, query)
            if known is not None:
                return known
            limits = self.limits.of_jobs()
            header = await self._in_thread(measure, data, limits)
            generators = await self.catalogue.pick(query.model)
            job = resolve(query, await generators.model())
            pixels = check_result(header, job, limits)
            # Asked again, since the same request may have come a second time meanwhile.
            known = self.jobs.repeated(client.name, key, data, query)
            if known is not None:
                return known
            client.charge(pixels)
            return self.jobs.begin(client.name, key, data, query)

    async def _work_on_job(self, data: bytes, query: UpscaleQuery, progress: OnProgress) -> Answer:
        return await self._work(data, query, self.limits.of_jobs(), None, progress)

    def _count_job(self, state: str) -> None:
        self.metrics.jobs.inc(1, {"state": state})

    async def _picture(self, request: Request, body: bytes, query: UpscaleQuery) -> tuple[bytes, UpscaleQuery]:
        content_type = request.headers.get("content-type", "")
        if content_type.lower().startswith(("multipart/", "application/json")):
            return await self._in_thread(picture_in, body, content_type, query)
        return body, query

    async def _work(
        self,
        data: bytes,
        query: UpscaleQuery,
        limits: ServiceLimits,
        admission: _Admission | None,
        progress: OnProgress | None = None,
    ) -> Answer:
        seconds: dict[str, float] = {}
        with _timed(seconds, "decode"):
            header = await self._in_thread(measure, data, limits)
            generators = await self.catalogue.pick(query.model)
            job = resolve(query, await generators.model())
            pixels = check_result(header, job, limits)
        with admission.of(pixels, generators.line) if admission else nullcontext():
            self.metrics.in_flight.set(self._pixels.taken)
            with _timed(seconds, "decode"):
                photo = await self._codec.decode(data, header, limits)
            with _timed(seconds, "queue"):
                job, result = await _upscaled(generators, photo, query, job, progress)
            seconds["queue"] -= result.seconds
            seconds["infer"] = result.seconds
            with _timed(seconds, "encode"):
                encoded = await self._codec.encode(result.photo, job)
        self.metrics.picture(header.width * header.height, encoded.width * encoded.height, seconds)
        return Answer(encoded, job, result.model, seconds)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))


class _Admission:
    """What a request has to pay for its pixels: a place in the line, a share of what is under way, its quota.

    Jobs have none: they have paid when they came, and let others go first.
    """

    def __init__(self, lease: Lease, client: Client) -> None:
        self._lease = lease
        self._client = client

    @contextmanager
    def of(self, pixels: int, line: AdmissionQueue) -> Iterator[None]:
        """Under way for the block. Raises Problem: overloaded or rate-limited."""
        with line.place(pixels):
            self._lease.add(pixels)
            self._client.charge(pixels)
            yield


async def _upscaled(
    generators: Router,
    photo: images.Photo,
    query: UpscaleQuery,
    job: codec.EncodeSettings,
    progress: OnProgress | None,
) -> tuple[codec.EncodeSettings, Upscaled]:
    """The photo from a replica. Where another model has taken over meanwhile, the query is settled by that one."""
    for _ in range(_TAKE_OVERS):
        try:
            return job, await generators.upscale(photo, job, progress)
        except ScaleChanged:
            generators.forget()
            job = resolve(query, await generators.model())
    raise Problem("starting", "the model is being exchanged; try again soon")


def measure(data: bytes, limits: ServiceLimits) -> Header:
    """The picture's header; no pixel is decoded. Raises Problem and PhotoError."""
    if images.sniff(data) not in limits.formats:
        accepted = ", ".join(limits.formats)
        raise Problem("unsupported-media-type", f"the body must be the bytes of a picture: {accepted}")
    header = images.scan_header(data)
    try:
        images.check_header(header, codec.accepted_photos(limits))
    except images.PhotoError as error:
        pixels = header.width * header.height
        if error.reason != "image-too-large" or pixels <= limits.input_pixels:
            raise
        raise Problem(error.reason, str(error), limit=limits.input_pixels, actual=pixels) from None
    return header


def check_result(header: Header, job: codec.EncodeSettings, limits: ServiceLimits) -> int:
    """Pixels that the network will make. Raises PhotoError and Problem where the result is over a limit."""
    images.check_result_size(job.format, round(header.width * job.scale), round(header.height * job.scale))
    width, height = header.width * job.network_scale, header.height * job.network_scale
    if width * height > limits.result_pixels:
        detail = f"the network would make {width}x{height}, over the limit of {limits.result_pixels} pixels"
        raise Problem("result-too-large", detail, limit=limits.result_pixels, actual=width * height)
    return width * height


def resolve(query: UpscaleQuery, model: ModelInfo) -> codec.EncodeSettings:
    """The query with its open ends closed by the model. Raises Problem where the model cannot do it."""
    scale = float(model.scale) if query.scale is None else query.scale
    if scale > model.scale:
        detail = f"the model {model.tag} enlarges up to {model.scale} times"
        errors = [{"parameter": "scale", "detail": detail}]
        raise Problem("invalid-parameter", f"scale: {detail}", errors=errors)
    assert query.format is not None
    assert query.format != "same"
    red, green, blue = bytes.fromhex(query.background)
    return codec.EncodeSettings(
        scale, model.scale, query.format, query.quality, query.lossless, (red, green, blue), query.metadata
    )


def _with_format(query: UpscaleQuery, wish: AcceptedResponse, data: bytes) -> UpscaleQuery:
    """The query with the format settled: the option, else what Accept asks for, else png."""
    format: str | None = query.format or wish.format or "png"
    if format == "same":
        kind = images.sniff(data)
        format = kind if kind in _WRITTEN else "png"  # what is none of them is refused when it is measured
    return query.model_copy(update={"format": format})


_WRITTEN: tuple[Format, ...] = ("png", "jpeg", "webp", "tiff")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
