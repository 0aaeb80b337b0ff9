"""The Python client against the running service."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from ray_sr import client
from ray_sr.errors import ClusterError, InputError
from ray_sr.images import decode
from tests.serving.conftest import LIMITS, Running


def test_bytes_and_files_give_the_same_answer(service: Running, small_png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    path.write_bytes(small_png)
    answer = client.upscale(service.url, path, scale=2)
    assert answer.data == client.upscale(f"{service.url}/", small_png, scale=2).data
    assert decode(answer.data).pixels.shape == (48, 64, 3)
    assert answer.media_type == "image/png"
    assert answer.model == f"portrait@{service.store.show('portrait').version}"
    assert answer.scale == 2
    assert answer.warnings == ()
    assert answer.request_id
    assert answer.seconds["infer"] > 0


def test_options_reach_the_service(service: Running, small_png: bytes) -> None:
    low = client.upscale(service.url, small_png, format="jpeg", quality=10)
    high = client.upscale(service.url, small_png, format="jpeg", quality=100)
    assert low.media_type == "image/jpeg"
    assert len(low.data) < len(high.data)


def test_jobs(service: Running, small_png: bytes) -> None:
    job = client.begin_job(service.url, small_png, scale=2, idempotency_key="client")
    assert client.begin_job(service.url, small_png, scale=2, idempotency_key="client").id == job.id
    deadline = time.monotonic() + 60
    while not job.ended:
        assert time.monotonic() < deadline
        job = client.job(service.url, job.id)
    assert (job.status, job.progress, job.error) == ("succeeded", 1, None)
    assert client.job_result(service.url, job.id).data == client.upscale(service.url, small_png, scale=2).data
    client.cancel_job(service.url, job.id)
    with pytest.raises(client.ServiceError, match="410"):
        client.job_result(service.url, job.id)


def test_refusals_are_typed(service: Running, small_png: bytes) -> None:
    with pytest.raises(client.ServiceError, match="422 \\(image-corrupt\\)") as caught:
        client.upscale(service.url, small_png[:50])
    assert caught.value.status == 422
    assert caught.value.kind == "image-corrupt"
    assert caught.value.problem["title"]


def test_body_over_the_limit_is_a_refusal_not_a_broken_pipe(service: Running) -> None:
    with pytest.raises(client.ServiceError) as caught:
        client.upscale(service.url, bytes(20 * LIMITS.body_bytes))
    assert caught.value.kind == "payload-too-large"


def test_information(service: Running) -> None:
    version = service.store.show("portrait").version
    assert client.models(service.url) == [client.ServedModel("portrait", "portrait", version, 4)]
    assert client.limits(service.url)["body_bytes"] == LIMITS.body_bytes
    assert client.is_ready(service.url)


def test_missing_file_is_the_users_error() -> None:
    with pytest.raises(InputError, match=r"nowhere\.png: No such file"):
        client.upscale("http://127.0.0.1:9", "nowhere.png")


def test_no_service_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert not client.is_ready(url)
        with pytest.raises(ClusterError, match=r"no answer from the service .*is it running") as caught:
            client.upscale(url, b"x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc", "127.0.0.1:8000", "http://", "http://host:port"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ClusterError, match="looks like http"):
        client.limits(url)


def test_client_says_address_and_key_once(service: Running, small_png: bytes) -> None:
    one = client.Client(service.url)
    assert one.is_ready()
    assert [model.id for model in one.models()] == ["portrait"]
    assert one.limits()["body_bytes"] == client.limits(service.url)["body_bytes"]
    begun = one.begin_job(small_png, scale=2, idempotency_key="from the class")
    assert one.begin_job(small_png, scale=2, idempotency_key="from the class").id == begun.id
    ended = one.wait(begun.id, pause_s=0.05)
    assert ended.status == "succeeded"
    assert one.job_result(begun.id).data == one.upscale(small_png, scale=2).data
    one.cancel_job(begun.id)
    with pytest.raises(client.ServiceError) as caught:
        one.job(begun.id)
    assert caught.value.status == 410


def test_waiting_looks_often_at_first_and_then_every_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["queued", "running", *["running"] * 30, "succeeded"])

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"id": "one", "status": next(states), "progress": 0.5, "error": None}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        job = client.Client(f"http://127.0.0.1:{server.server_port}").wait("one", pause_s=2)
        server.shutdown()
    assert job.status == "succeeded"
    assert pauses[0] <= 0.1
    assert all(one < other or one == other == 2 for one, other in pairwise(pauses))
    assert all(other <= 0.4 * sum(pauses[:number]) + 0.1 for number, other in enumerate(pauses)), "late by a third"
    assert pauses[-1] == 2, "and no later than the pause that was asked for"
