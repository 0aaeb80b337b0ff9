"""One request from body to answer: read, measure, admit, decode, upscale, encode."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request

from ray_sr.serving import codec
from ray_sr.serving.budget import Budget, Lease
from ray_sr.serving.generators import Generators
from ray_sr.serving.messages import ModelInfo
from ray_sr.serving.options import ServiceLimits, UpscaleQuery
from ray_sr.serving.problems import Problem

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the response to one picture is made of; `seconds` of each stage in the order in which they ran."""

    encoded: codec.Encoded
    job: codec.Job
    model: ModelInfo
    seconds: dict[str, float]


class Service:
    """State of one ingress replica: its limits, what is under way, its codec threads, its generators."""

    def __init__(self, generators: Generators, limits: ServiceLimits) -> None:
        self.generators = generators
        self.limits = limits
        self._bytes = Budget(limits.in_flight_bytes, "bytes")
        self._pixels = Budget(limits.in_flight_pixels, "pixels")
        self._codec = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codec")

    async def upscale(self, request: Request, query: UpscaleQuery) -> Answer:
        """The answer to one picture. Raises Problem and PhotoError."""
        deadline_s = self.limits.request_deadline_s
        with self._bytes.lease() as lease:
            data = await read_body(request, self.limits, lease)
            try:
                async with asyncio.timeout(deadline_s):
                    return await self._work(data, query)
            except TimeoutError:
                raise Problem("timeout", f"no result within {deadline_s:g} s; send a smaller picture") from None

    async def _work(self, data: bytes, query: UpscaleQuery) -> Answer:
        job = settle(query, await self.generators.model())
        seconds: dict[str, float] = {}
        with self._pixels.lease() as lease:
            with _timed(seconds, "decode"):
                lease.add(await self._in_thread(codec.measure, data, job, self.limits))
                photo = await self._in_thread(codec.decode, data, self.limits)
            with _timed(seconds, "queue"):
                result = await self.generators.upscale(photo, job.scale)
            seconds["queue"] -= result.seconds
            seconds["infer"] = result.seconds
            with _timed(seconds, "encode"):
                encoded = await self._in_thread(codec.encode, result.photo, job)
        return Answer(encoded, job, result.model, seconds)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._codec, lambda: function(*args, **kwargs))


async def read_body(request: Request, limits: ServiceLimits, lease: Lease) -> bytes:
    """The whole body. Raises Problem as soon as it is too large: before reading where that is announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        _check_length(int(announced), limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_deadline_s):
            async for chunk in request.stream():
                lease.add(len(chunk))
                body += chunk
                _check_length(len(body), limits)
    except TimeoutError:
        late = f"the body did not arrive within {limits.body_deadline_s:g} s"
        raise Problem("request-timeout", late, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Problem("bad-request", "the body ended before its announced length") from None
    if not body:
        raise Problem("bad-request", "the body is empty; it must be the bytes of a picture")
    return bytes(body)


def _check_length(length: int, limits: ServiceLimits) -> None:
    if length > limits.body_bytes:
        detail = f"the body is over the limit of {limits.body_bytes} bytes"
        raise Problem("payload-too-large", detail, limit=limits.body_bytes, actual=length)


def settle(query: UpscaleQuery, model: ModelInfo) -> codec.Job:
    """The query with its open ends closed by the model. Raises Problem where the model cannot do it."""
    scale = float(model.scale) if query.scale is None else query.scale
    if scale > model.scale:
        detail = f"the model {model.tag} enlarges up to {model.scale} times"
        errors = [{"parameter": "scale", "detail": detail}]
        raise Problem("invalid-parameter", f"scale: {detail}", errors=errors)
    return codec.Job(scale, model.scale, query.format, query.quality, query.metadata)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin
