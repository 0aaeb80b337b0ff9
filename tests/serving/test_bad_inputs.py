"""Every bad input gets its status, and the service goes on as before."""

from __future__ import annotations

import importlib
import io
import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from PIL import Image
from ray import serve

from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.serving.app import build
from ray_sr.serving.options import ServiceOptions
from ray_sr.store import Store
from tests.serving.bad_inputs import CASES, ELSEWHERE, Case, good_png
from tests.serving.conftest import Running
from tests.serving.processes import codecs, replicas, resident_bytes

GROWTH_BYTES = 48 << 20


@pytest.fixture(scope="module")
def rough(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an application with the limits that everybody gets, and a small network."""
    store = Store(tmp_path_factory.mktemp("rough"))
    network = NetworkSpec(scale=4, generator=SRResNetSpec(blocks=1, channels=4))
    torch.manual_seed(1)
    store.publish("tiny", build_generator(network), network)
    options = ServiceOptions(
        model="tiny",
        store=store.root,
        device="cpu",
        cpus=0.1,
        codec_processes=2,
        jobs=str(tmp_path_factory.mktemp("jobs")),
    )
    serve.run(build(options), name="rough", route_prefix="/rough")
    yield f"{service.url}/rough"
    serve.delete("rough")


def send(url: str, case: Case, body: bytes) -> httpx.Response:
    address = f"{url}/v1/upscale?{case.query}" if case.query else f"{url}/v1/upscale"
    return httpx.request(case.method, address, content=body, headers=case.headers, timeout=90)


def pids() -> list[int]:
    """The ingress, its two codec processes and the replica of the network."""
    (ingress,) = replicas("rough", "Ingress")
    found = [ingress, *codecs(ingress), *replicas("rough", "Generator")]
    assert len(found) == 4
    return found


def works(url: str) -> None:
    response = httpx.post(f"{url}/v1/upscale", content=good_png(), timeout=60)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_status(rough: str, case: Case) -> None:
    response = send(rough, case, case.body())
    assert response.status_code == case.status, response.text[:500] + case.note
    if case.status != 200:
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["instance"] == response.headers["x-request-id"]
        assert not any(private in response.text for private in ("Traceback", "ray_sr", ".py", "/tmp"))
        return
    picture = Image.open(io.BytesIO(response.content))
    picture.load()
    assert case.size is None or picture.size == case.size
    assert not case.mode or picture.mode == case.mode
    assert case.warning in response.headers.get("raysr-warnings", "")


def test_bad_inputs_end_no_process_of_the_service(rough: str) -> None:
    works(rough)
    before = pids()
    for case in CASES[::8]:
        if case.status != 200:
            send(rough, case, case.body())
    works(rough)
    assert pids() == before


def test_all_inputs_of_the_study_are_here() -> None:
    assert {case.number for case in CASES} | ELSEWHERE.keys() == set(range(1, 114))
    for place in ELSEWHERE.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def connection(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_body_shorter_than_announced_is_no_fault_of_the_service(rough: str) -> None:
    """The client closes its side in mid-body: whatever it is told, if anything, is not a 5xx."""
    with connection(rough) as client:
        client.sendall(
            b"POST /rough/v1/upscale HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n" + good_png()[:100]
        )
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(65536)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    works(rough)


def test_slow_headers_hold_nobody_up(rough: str) -> None:
    """Serve's proxy waits for headers as long as it takes, which a proxy before it must end; others are served."""
    slow = [connection(rough) for _ in range(20)]
    try:
        for client in slow:
            client.sendall(b"POST /rough/v1/upscale HTTP/1.1\r\nHost: te")
        works(rough)
    finally:
        for client in slow:
            client.close()


@pytest.mark.parametrize("requests", [240, pytest.param(2000, marks=pytest.mark.nightly)])
def test_memory_stays_flat_over_many_bad_requests(rough: str, requests: int) -> None:
    chosen = [case for case in CASES if case.status != 200 and case.number != 99]
    bodies = {str(case): case.body() for case in chosen}
    order = random.Random(11).choices(chosen, k=requests)
    third = len(order) // 3
    taken = []
    with httpx.Client(timeout=90) as client:
        for number, case in enumerate(order):
            address = f"{rough}/v1/upscale?{case.query}"
            response = client.request(case.method, address, content=bodies[str(case)], headers=case.headers)
            assert response.status_code == case.status, str(case)
            if number + 1 in (third, len(order)):
                taken.append(_memory())
    works(rough)
    assert taken[1] - taken[0] < GROWTH_BYTES, f"{taken[0] >> 20} MiB became {taken[1] >> 20} MiB"


def _memory() -> int:
    return sum(map(resident_bytes, pids()))
