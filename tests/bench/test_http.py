"""Load generation, held against a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_sr.bench import http as load
from ray_sr.bench.http import Measured, Target
from ray_sr.cli import cli
from ray_sr.errors import ClusterError
from ray_sr.images import decode


class Server(ThreadingHTTPServer):
    """Answers one request after the other, each in `work_s`; refuses what finds `most` waiting."""

    daemon_threads = True
    work_s = 0.0
    most = 10_000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.turn = threading.Lock()
        self.waiting = 0
        self.seen: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(body)
        if self.server.waiting >= self.server.most:
            self._answer(503)
            return
        self.server.waiting += 1
        with self.server.turn:
            time.sleep(self.server.work_s)
        self.server.waiting -= 1
        self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def target(server: Server) -> Target:
    return Target(f"http://127.0.0.1:{server.server_address[1]}", load.photos([16, 24]))


def test_arrivals_are_poisson_and_do_not_wait_for_answers(server: Server) -> None:
    """At 40/s a server of 20/s falls behind: the latency from the due time grows to about the backlog's length."""
    server.work_s = 0.05
    measured = asyncio.run(load.offer(target(server), 40, 2, seed=3))
    assert 55 <= sum(measured.statuses.values()) <= 105, "80 on average"
    assert measured.p99_ms > 600
    assert measured.goodput < 21


def test_closed_loop_sends_as_fast_as_it_is_answered(server: Server) -> None:
    server.work_s = 0.05
    measured = asyncio.run(load.closed_loop(target(server), clients=2, seconds=1.5))
    assert 5 <= measured.goodput <= 20.5
    assert measured.p50_ms >= 90, "two clients wait for each other"


def test_refusals_are_apart_from_good_answers(server: Server) -> None:
    server.work_s, server.most = 0.05, 1
    measured = asyncio.run(load.offer(target(server), 60, 1.5))
    assert measured.statuses["503"] > 0
    assert measured.refusal_p50_ms is not None
    assert not measured.bears(1e9)


def fake(capacity: float) -> tuple[list[float], object]:
    asked: list[float] = []

    async def measure(rate: float) -> Measured:
        asked.append(rate)
        late = 10.0 if rate <= capacity else 5000.0
        return Measured(rate, min(rate, capacity), late, late, late, None, None, {"200": 100})

    return asked, measure


@pytest.mark.parametrize("capacity", [0.3, 1.0, 7.3, 100.0])
def test_highest_rate_is_found(capacity: float) -> None:
    asked, measure = fake(capacity)
    found, course = asyncio.run(load.highest_rate(measure, 250))  # type: ignore[arg-type]
    assert found <= capacity
    assert found >= capacity * 0.9
    assert [one.offered for one in course] == asked


def test_none_is_found_where_none_is_borne() -> None:
    _, measure = fake(0.0)
    assert asyncio.run(load.highest_rate(measure, 250))[0] == 0  # type: ignore[arg-type]


def test_command_prints_json_and_draws(server: Server, tmp_path: Path) -> None:
    server.work_s, server.most = 0.3, 4  # what waits is not all waited for
    url = f"http://127.0.0.1:{server.server_address[1]}"
    picture = tmp_path / "load.png"
    arguments = ["bench", "http", url, "--seconds", "1", "--size", "16", "--p99", "800", "--overload", "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["p99_bound_ms"] == 800
    assert found["overload"]["offered"] > 0
    assert len(found["loads"]) >= 5
    assert decode(picture.read_bytes()).width > 300
    assert decode(server.seen[0]).pixels.shape == (16, 16, 3)


def test_nobody_there_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = Target(f"http://127.0.0.1:{unused.getsockname()[1]}", load.photos([8]))
        with pytest.raises(ClusterError, match="is it running"):
            asyncio.run(load.offer(nobody, 20, 0.5))
