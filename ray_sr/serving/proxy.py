"""What Serve's own HTTP proxy answers, as problem details: it speaks where no ingress could.

Serve takes the middleware from the environment variable of ENVIRONMENT, in the process of each proxy.
"""

from __future__ import annotations

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_sr.serving.problems import Problem, request_id_of

logger = logging.getLogger(__name__)

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_sr.serving.proxy.middlewares"}

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
    """ASGI middleware of the proxy. The ingress answers every error itself, so plain text is Serve's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def answer(status: int) -> None:
            problem = Problem(*_OF_SERVE[status]).response(scope)
            problem.headers["X-Request-Id"] = request_id_of(scope)
            await problem(scope, receive, send)

        async def send_problem(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start" and _is_serves_own(message):
                replaced = True
                await answer(message["status"])
            elif not replaced:
                started = True
                await send(message)

        try:
            await self._app(scope, receive, send_problem)
        except Exception as error:
            if started or replaced or scope["type"] != "http":
                raise
            logger.warning("no answer from the ingress: %r", error)
        if scope["type"] == "http" and not (started or replaced):
            await answer(500)


def _is_serves_own(message: Message) -> bool:
    kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
    return message["status"] in _OF_SERVE and all(kind.startswith(b"text/plain") for kind in kinds)
