"""Errors as the client sees them: problem details (RFC 9457), one line each, nothing leaked."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_sr.errors import ResourceError
from ray_sr.images import PhotoError

logger = logging.getLogger(__name__)

KINDS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request is malformed"),
    "unauthorized": (401, "A valid API key is needed"),
    "not-found": (404, "There is nothing at this address"),
    "method-not-allowed": (405, "This address does not take this method"),
    "not-acceptable": (406, "The answer cannot be given in an accepted format"),
    "request-timeout": (408, "The body did not arrive in time"),
    "job-not-ready": (409, "The job has no result yet"),
    "gone": (410, "The job's result is not there any more"),
    "payload-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is not of an accepted picture format"),
    "invalid-parameter": (422, "An option is unknown or out of range"),
    "image-corrupt": (422, "The picture is damaged"),
    "image-too-large": (422, "The picture has too many pixels"),
    "animated-image": (422, "The picture has more than one frame"),
    "unsupported-image": (422, "The picture is of a kind that is not supported"),
    "result-too-large": (422, "The result would have too many pixels"),
    "format-limit": (422, "The result does not fit the asked format"),
    "idempotency-conflict": (422, "The idempotency key was used for another request"),
    "rate-limited": (429, "This client's quota is used up"),
    "internal": (500, "The service failed"),
    "overloaded": (503, "The service is full"),
    "starting": (503, "The service is not ready yet"),
    "timeout": (504, "The work took too long"),
}
RETRY_AFTER_S = 2
MEDIA_TYPE = "application/problem+json"
ROOT_HEADER = b"raysr-root"  # the path below which the service lies, for Serve's proxy, which takes it out


class Problem(Exception):
    """An answer other than success. `kind` is a key of KINDS; `facts` are further members of the body."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = KINDS[kind]
        self.detail = detail
        self.headers = dict(headers or {})
        self.facts = facts
        if self.status == 503 and retry_after is None:
            retry_after = RETRY_AFTER_S
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
            self.facts["retry_after"] = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        """Problems travel between the processes of the service."""
        return _restored, (self.kind, self.detail, self.headers, self.facts)

    def document(self, request_id: str) -> dict[str, Any]:
        """The body of the answer: the fields of ProblemDocument."""
        return {
            "type": f"/problems/{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": quote(request_id[:128], safe=""),
            **self.facts,
        }

    def response(self, scope: Scope) -> JSONResponse:
        """The answer. What kind it is goes into the scope, for log and metrics."""
        scope["ray_sr.kind"] = self.kind
        return JSONResponse(self.document(request_id_of(scope)), self.status, self.headers, media_type=MEDIA_TYPE)


def _restored(kind: str, detail: str, headers: dict[str, str], facts: dict[str, Any]) -> Problem:
    return Problem(kind, detail, headers=headers, **facts)


def problem_of(error: Exception) -> Problem:
    """The problem that an error of the library stands for; what is unforeseen is logged, not told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PhotoError):
        return Problem(error.reason if error.reason in KINDS else "image-corrupt", str(error))
    if isinstance(error, ResourceError | MemoryError):
        logger.warning("out of resources: %s", error)
        return Problem("overloaded", "not enough memory for this picture now; try again or send a smaller one")
    logger.error("unexpected error", exc_info=error)
    return Problem("internal", "unexpected error; quote the request id when you report it")


def _problem_of_http(error: HTTPException) -> Problem:
    if error.status_code == 404:
        return Problem("not-found", "the addresses of this service are listed in /openapi.json")
    if error.status_code == 405:
        allowed = (error.headers or {})["Allow"]
        return Problem("method-not-allowed", f"use {allowed}", headers={"Allow": allowed})
    return Problem("bad-request", str(error.detail))


def invalid_parameters(found: Iterable[Mapping[str, Any]], known: Iterable[str]) -> Problem:
    """Problem of pydantic errors on query options, each named, with the nearest known name if unknown."""
    known = list(known)
    errors = [{"parameter": str(e["loc"][-1]), "detail": _explain(e, known)} for e in found]
    detail = "; ".join(f"{e['parameter']}: {e['detail']}" for e in errors)
    return Problem("invalid-parameter", detail, errors=errors)


def _explain(error: Mapping[str, Any], known: list[str]) -> str:
    if error["type"] != "extra_forbidden":
        return str(error["msg"])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    return f"unknown option; did you mean {near[0]}?" if near else f"unknown option; known: {', '.join(known)}"


def request_id_of(scope: Scope) -> str:
    """The id that Serve gave the request, or that the client sent."""
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")


class SafeAnswers:
    """ASGI middleware: safety headers where an answer has none of its own; every error becomes a problem."""

    _HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = message.get("headers", ())
                names = {name.lower() for name, _ in own}
                root = (ROOT_HEADER, scope.get("root_path", "").encode("latin-1"))
                message["headers"] = [*own, root, *(header for header in self._HEADERS if header[0] not in names)]
            await send(message)

        try:
            await self._app(scope, receive, send_safely)
        except Exception as error:
            if started:
                raise
            answer = problem_of(error).response(scope)
            await answer(scope, receive, send_safely)


def install(app: FastAPI, known_options: Iterable[str]) -> None:
    """Makes every error of the application, its framework's included, a problem document."""
    names = tuple(known_options)

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            problem = invalid_parameters(error.errors(), names)
        else:
            assert isinstance(error, HTTPException)
            problem = _problem_of_http(error)
        return problem.response(request.scope)

    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, answer)
    app.add_middleware(SafeAnswers)
