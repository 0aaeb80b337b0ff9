"""Services on a Ray of their own; an engine that sleeps instead of computing, as a GPU does for the processor."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from ray_sr.cluster import connect, disconnect
from ray_sr.images import Photo
from ray_sr.models import Bicubic
from ray_sr.serving.schemas import ModelChoice, ModelInfo, Upscaled
from ray_sr.upscaling import Engine, upscale_photo

SCALE = 4
INFO = ModelInfo(name="sleeping", version="0" * 12, scale=SCALE)


class Enlarged:
    """Photos enlarged by bicubic, each computed once."""

    def __init__(self) -> None:
        model = Bicubic(SCALE)
        self._engine = Engine(model, model.capability, device="cpu")
        self._made: dict[bytes, Photo] = {}

    def of(self, photo: Photo) -> Photo:
        key = hashlib.sha256(photo.pixels.tobytes()).digest()
        if key not in self._made:
            self._made[key] = upscale_photo(photo, self._engine)
        return self._made[key]


def sleeping_generator(seconds: float, at_once: int) -> serve.Application:
    """A replica that takes so long for each photo, and so many at once."""

    class Sleeping:
        def __init__(self) -> None:
            self._results = Enlarged()
            self._free = asyncio.Semaphore(at_once)

        async def describe(self) -> ModelInfo:
            return INFO

        async def upscale(
            self, photo: Photo, scale: float, network_scale: int, choice: ModelChoice | None = None
        ) -> Upscaled:
            result = self._results.of(photo)
            async with self._free:
                await asyncio.sleep(seconds)
            return Upscaled(result, INFO, seconds)

    settings: dict[str, Any] = {"max_ongoing_requests": 4 * at_once, "max_queued_requests": 1024}
    return serve.deployment(name="Generator", ray_actor_options={"num_cpus": 0.1}, **settings)(Sleeping).bind()


@contextmanager
def loopback() -> Iterator[Callable[[str, serve.Application], str]]:
    """What runs an application under a name and returns its URL; all have one Ray and one proxy."""
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    port = free_port()

    def run(name: str, application: serve.Application) -> str:
        serve.run(application, name=name, route_prefix=f"/{name}", logging_config=quiet)
        return f"http://127.0.0.1:{port}/{name}"

    connect()
    try:
        http = HTTPOptions(host="127.0.0.1", port=port)
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        yield run
        serve.shutdown()
    finally:
        disconnect()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
