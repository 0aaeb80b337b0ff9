"""What the client sees when a process of the service fails: on demand, or killed under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray import serve

from ray_sr.errors import ResourceError
from ray_sr.images import Photo, encode
from ray_sr.serving.app import assemble, build
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.schemas import ModelInfo, Upscaled
from tests.serving.conftest import LIMITS, Running, picture
from tests.serving.processes import codecs, replicas

DEADLINE_S = 120


@pytest.fixture(scope="module")
def faulty(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a second application whose generator fails in a way that the picture's width chooses."""

    class Faulty:
        async def describe(self) -> ModelInfo:
            return ModelInfo(name="faulty", version="0" * 12, scale=1)

        async def upscale(self, photo: Photo, *_: object) -> Upscaled:
            import os

            if photo.width == 1:
                raise KeyError("secret")
            if photo.width == 2:
                raise ResourceError("the device has no memory left")
            if photo.width == 3:
                os._exit(1)
            return Upscaled(photo, await self.describe(), 0.0)

    generator = serve.deployment(name="Faulty", num_replicas=1, max_ongoing_requests=4)(Faulty)
    options = ServiceOptions(limits=LIMITS, jobs=str(tmp_path_factory.mktemp("jobs")))
    application = assemble(options, generator.bind())
    serve.run(application, name="faulty", route_prefix="/faulty")
    yield f"{service.url}/faulty"
    serve.delete("faulty")


def post(url: str, width: int) -> httpx.Response:
    png = encode(Photo(np.zeros((2, width, 3), np.uint8)), "png")
    return httpx.post(f"{url}/v1/upscale", content=png, timeout=30)


def test_unforeseen_error_is_500_and_tells_nothing(faulty: str) -> None:
    response = post(faulty, 1)
    assert response.status_code == 500
    problem = response.json()
    assert problem["type"] == "/problems/internal"
    assert problem["instance"] == response.headers["x-request-id"]
    for private in ("secret", "KeyError", "Traceback", ".py", "replica"):
        assert private not in response.text


def test_lack_of_memory_is_503(faulty: str) -> None:
    response = post(faulty, 2)
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/overloaded"
    assert int(response.headers["retry-after"]) > 0
    assert "device" not in response.text


def test_service_outlives_its_replica(faulty: str) -> None:
    assert post(faulty, 4).status_code == 200
    killed = post(faulty, 3)
    assert killed.status_code == 503
    assert killed.json()["type"] == "/problems/starting"
    assert "retry-after" in killed.headers
    for _ in range(20):  # each refusal takes up to two seconds: it waits for a replica
        again = httpx.get(f"{faulty}/readyz", timeout=30)
        if again.status_code == 200:
            break
        assert again.json()["type"] == "/problems/starting"
    assert post(faulty, 4).status_code == 200


# Under load ----------------------------------------------------------------------------------------------


class Load:
    """Clients that send the same picture again and again and sort what comes back."""

    def __init__(self, url: str, png: bytes, right: bytes, clients: int) -> None:
        self._url, self._png, self._right = url, png, right
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.answers: list[int] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                response = httpx.post(f"{self._url}/v1/upscale", content=self._png, timeout=60)
            except httpx.TransportError as error:
                self.wrong.append(repr(error))
                continue
            if response.status_code == 200 and response.content != self._right:
                self.wrong.append("another picture")
            elif response.status_code not in (200, 503, 504):
                self.wrong.append(f"{response.status_code} {response.text[:200]}")
            self.answers.append(response.status_code)
            if response.status_code != 200:
                self._stop.wait(0.1)  # as Retry-After asks for, only sooner

    def wait_for_successes(self, count: int) -> None:
        """Returns after so many more good answers."""
        begin, end = len(self.answers), time.monotonic() + DEADLINE_S
        while self.answers[begin:].count(200) < count:
            assert time.monotonic() < end, (self.answers[begin:], self.wrong)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def mortal(
    service: Running, small_png: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, bytes]]:
    """URL of a quick application of two replicas, and its answer to the small picture."""
    options = ServiceOptions(
        model="bicubic",
        jobs=str(tmp_path_factory.mktemp("jobs")),
        device="cpu",
        precision="float32",
        cpus=0.1,
        min_replicas=2,
        max_replicas=2,
        codec_processes=2,
    )
    serve.run(build(options), name="mortal", route_prefix="/mortal")
    url = f"{service.url}/mortal"
    yield url, httpx.post(f"{url}/v1/upscale", content=small_png, timeout=60).content
    serve.delete("mortal")


def victims(which: str) -> list[int]:
    (ingress,) = replicas("mortal", "Ingress")
    return {"generator": replicas("mortal", "Generator"), "codec": codecs(ingress), "ingress": [ingress]}[which]


@pytest.mark.parametrize("which", ["generator", "codec", "ingress"])
def test_kill_under_load_costs_only_what_was_in_flight(
    mortal: tuple[str, bytes], small_png: bytes, which: str
) -> None:
    url, right = mortal
    with Load(url, small_png, right, clients=3) as load:
        load.wait_for_successes(20)
        (victim, *others) = victims(which)
        held = victims("codec")
        os.kill(victim, signal.SIGKILL)
        load.wait_for_successes(40)
        end = time.monotonic() + DEADLINE_S
        while len(found := victims(which)) <= len(others) or victim in found:
            assert time.monotonic() < end, f"{which} was not replaced"
            time.sleep(0.05)
    assert load.wrong == []
    if which == "ingress":
        while any(Path(f"/proc/{pid}").exists() for pid in held):  # codec processes end with their ingress
            assert time.monotonic() < end
            time.sleep(0.05)
    else:
        assert len(load.answers) - load.answers.count(200) <= 6, "of three clients, twice at most"


def test_replicas_follow_the_load(
    service: Running, small_png: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One replica, two under load, one again. Its deployment decides by what the handles report."""
    options = ServiceOptions(
        model="bicubic",
        jobs=str(tmp_path_factory.mktemp("jobs")),
        device="cpu",
        cpus=0.1,
        codec_processes=1,
        max_replicas=2,
        requests_per_replica=2,
        upscale_delay_s=0.2,
        downscale_delay_s=1,
    )
    serve.run(build(options), name="elastic", route_prefix="/elastic")
    url = f"{service.url}/elastic"
    try:
        png = encode(picture(500, 500), "png")
        right = httpx.post(f"{url}/v1/upscale", content=png, timeout=60).content
        assert len(replicas("elastic", "Generator")) == 1
        with Load(url, png, right, clients=6) as load:
            _wait_for_replicas(2)
            load.wait_for_successes(6)
        _wait_for_replicas(1)
        assert load.wrong == []
        assert httpx.post(f"{url}/v1/upscale", content=small_png, timeout=60).status_code == 200
    finally:
        serve.delete("elastic")


def _wait_for_replicas(count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while len(replicas("elastic", "Generator")) != count:
        assert time.monotonic() < end, serve.status().applications["elastic"]
        time.sleep(0.1)
