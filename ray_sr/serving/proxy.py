"""What Serve's own HTTP proxy answers, as problem details: it speaks where no ingress could.

Serve takes the middleware from the environment variable of ENVIRONMENT, in the process of each proxy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_sr.serving.problems import ROOT_HEADER, Problem, request_id_of

logger = logging.getLogger(__name__)

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_sr.serving.proxy.middlewares"}

_DRAINING_S = 120.0  # after which an application that is not there has been taken away for good
_DRAIN_RETRY_S = 2

_OF_SERVE = {
    404: ("not-found", "no application of this server has this address"),
    408: ("timeout", "the service took too long"),
    429: ("overloaded", "too many requests are waiting; try again later"),
    500: ("starting", "the process that held the request is gone; send it again"),
    503: ("starting", "the service is not ready; try again soon"),
}


def middlewares() -> list[Middleware]:
    """What Serve is to put around its proxy."""
    return [Middleware(ProxyProblems)]


class ProxyProblems:
    """ASGI middleware of the proxy. The ingress answers every error itself, so plain text is Serve's own.

    Where the ingress has answered before, Serve's 404 means that it is being ended or exchanged: that is a 503.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._missing: dict[str, float | None] = {}  # of each path of a service, since when it has not answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def answer(status: int) -> None:
            kind, detail = _OF_SERVE[status]
            if status == 404 and self._is_draining(scope["path"]):
                kind, detail = "starting", "the service is being stopped or replaced; try again soon"
            problem = Problem(kind, detail, retry_after=_DRAIN_RETRY_S if kind == "starting" else None)
            response = problem.response(scope)
            response.headers["X-Request-Id"] = request_id_of(scope)
            await response(scope, receive, send)

        async def send_problem(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start" and _is_serves_own(message):
                replaced = True
                await answer(message["status"])
            elif not replaced:
                started = True
                await send(self._without_root(message))

        try:
            await self._app(scope, receive, send_problem)
        except Exception as error:
            if started or replaced or scope["type"] != "http":
                raise
            logger.warning("no answer from the ingress: %r", error)
        if scope["type"] == "http" and not (started or replaced):
            await answer(500)

    def _without_root(self, message: Message) -> Message:
        """The message without the header that says where the service lies; that is remembered."""
        if message["type"] != "http.response.start":
            return message
        headers = list(message.get("headers", ()))
        for header in [header for header in headers if header[0].lower() == ROOT_HEADER]:
            headers.remove(header)
            self._missing[header[1].decode("latin-1")] = None
        return {**message, "headers": headers}

    def _is_draining(self, path: str) -> bool:
        """Whether a service that has answered at this path does not since a short while."""
        for root, since in self._missing.items():
            if path == root or path.startswith(f"{root}/"):
                self._missing[root] = since = self._clock() if since is None else since
                if self._clock() - since < _DRAINING_S:
                    return True
        return False


def _is_serves_own(message: Message) -> bool:
    kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
    return message["status"] in _OF_SERVE and all(kind.startswith(b"text/plain") for kind in kinds)
