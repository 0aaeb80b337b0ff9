"""Answers of Serve's proxy become problem details; those of applications pass as they are."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_sr.serving.proxy import ENVIRONMENT, ProxyProblems


def ask(app: ASGIApp) -> httpx.Response:
    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyProblems(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/", headers={"X-Request-Id": "mine"})

    return asyncio.run(exchange())


@pytest.mark.parametrize(
    ("status", "shown", "kind"),
    [(404, 404, "not-found"), (408, 504, "timeout"), (429, 503, "overloaded"), (500, 503, "starting"),
     (503, 503, "starting")],
)  # fmt: skip
def test_plain_errors_become_problems(status: int, shown: int, kind: str) -> None:
    response = ask(PlainTextResponse("a replica's traceback", status))
    assert response.status_code == shown
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"/problems/{kind}"
    assert problem["instance"] == response.headers["x-request-id"] == "mine"
    assert "traceback" not in response.text
    assert (shown == 503) == ("retry-after" in response.headers)


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("fine"),
        JSONResponse({"type": "/problems/internal"}, 500),
        PlainTextResponse("teapot", 418),
    ],
)
def test_other_answers_pass(answer: Response) -> None:
    response = ask(answer)
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


def test_service_that_answered_before_is_draining_for_a_while() -> None:
    """Serve's 404 becomes 503 with Retry-After where a service has been, and nowhere else."""
    now = 0.0
    is_there = True

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        here = is_there and scope["path"].startswith("/sr")
        answer = Response("fine", headers={"raysr-root": "/sr"}) if here else PlainTextResponse("not found", 404)
        await answer(scope, receive, send)

    async def scenario() -> None:
        nonlocal now, is_there
        transport = httpx.ASGITransport(ProxyProblems(app, clock=lambda: now))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/sr/x")).status_code == 200
            assert "raysr-root" not in (await client.get("/sr/x")).headers
            is_there = False
            now += 1000  # nobody asked for long
            draining = await client.get("/sr/x")
            assert draining.status_code == 503
            assert int(draining.headers["retry-after"]) > 0
            assert (await client.get("/srx")).status_code == 404
            now += 119
            assert (await client.get("/sr/x")).status_code == 503
            now += 2
            assert (await client.get("/sr/x")).status_code == 404
            is_there = True
            assert (await client.get("/sr/x")).status_code == 200
            is_there = False
            assert (await client.get("/sr/x")).status_code == 503

    asyncio.run(scenario())


def test_ingress_that_is_gone_is_503() -> None:
    async def dead(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("The actor died: secret")

    response = ask(dead)
    assert response.status_code == 503
    assert "secret" not in response.text


def test_no_answer_at_all_is_503() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    assert ask(silent).json()["type"] == "/problems/starting"


def test_serve_accepts_the_callback() -> None:
    (path,) = ENVIRONMENT.values()
    assert len(validate_http_proxy_callback_return(call_function_from_import_path(path))) == 1
