"""What the service tells its operators: metrics on Ray's own port, and an access log of JSON lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

from ray.serve.metrics import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STAGE_BOUNDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]


class Metrics:
    """The service's own metrics. Prometheus sees them with `ray_` before their names."""

    def __init__(self) -> None:
        self.requests = Counter("sr_requests", "Answers", ("route", "status"))  # type: ignore[arg-type]
        self.refusals = Counter("sr_refusals", "Answers other than success, by kind of problem", ("reason",))
        self.pixels = Counter("sr_pixels", "Pixels that came in and went out", ("direction",))
        self.stages = Histogram("sr_stage_seconds", "Seconds of each stage", _STAGE_BOUNDS, ("stage",))
        self.in_flight = Gauge("sr_in_flight_pixels", "Pixels of results under way")
        self.jobs = Counter("sr_jobs", "Jobs, by how they ended", ("state",))

    def picture(self, pixels_in: int, pixels_out: int, seconds: Mapping[str, float]) -> None:
        """Counts one picture that was upscaled."""
        self.pixels.inc(pixels_in, {"direction": "in"})
        self.pixels.inc(pixels_out, {"direction": "out"})
        for stage, duration in seconds.items():
            self.stages.observe(max(0.0, duration), {"stage": stage})


def open_access_log(path: str | None) -> Callable[[Mapping[str, object]], None]:
    """Writes facts as JSON lines; the file can be moved away meanwhile."""
    if path is None:
        return lambda facts: None
    handler = WatchedFileHandler(path, encoding="utf-8")

    def write(facts: Mapping[str, object]) -> None:
        line = json.dumps(facts)
        handler.emit(logging.LogRecord("access", logging.INFO, "", 0, line, None, None))

    return write


class Observed:
    """ASGI middleware: counts each answer and notes it in the access log. Neither sees a picture."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Callable[[Mapping[str, object]], None]) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = {"status": 0, "bytes_in": 0, "bytes_out": 0}

        async def counting_receive() -> Message:
            message = await receive()
            seen["bytes_in"] += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            seen["bytes_out"] += len(message.get("body", b""))
            await send(message)

        begin = time.perf_counter()
        try:
            await self._app(scope, counting_receive, counting_send)
        finally:
            # A client that left got no answer: 499, as proxies write it.
            self._note(scope, seen | {"status": seen["status"] or 499}, time.perf_counter() - begin)

    def _note(self, scope: Scope, seen: Mapping[str, int], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        kind = scope.get("ray_sr.kind", "")
        self._metrics.requests.inc(1, {"route": route, "status": str(seen["status"])})
        if kind:
            self._metrics.refusals.inc(1, {"reason": kind})
        headers = dict(scope["headers"])
        facts = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": headers.get(b"x-request-id", b"").decode("latin-1")[:128],
            "client": (scope.get("client") or ("",))[0],
            "key": scope.get("ray_sr.key", ""),
            "method": scope["method"],
            "path": scope["path"][:200],
            **seen,
            "seconds": round(seconds, 4),
            "problem": kind,
        }
        self._log(facts)
