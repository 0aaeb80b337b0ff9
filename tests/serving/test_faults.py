"""What the client sees when a replica fails. The generator here is one that fails on demand."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from ray import serve

from ray_sr.errors import ResourceError
from ray_sr.images import Photo, encode
from ray_sr.serving.app import ingress_deployment
from ray_sr.serving.messages import ModelInfo, Upscaled
from ray_sr.serving.options import ServiceOptions
from tests.serving.conftest import LIMITS, Running


@pytest.fixture(scope="module")
def faulty(service: Running) -> Iterator[str]:
    """URL of a second application whose generator fails in a way that the picture's width chooses."""

    class Faulty:
        async def describe(self) -> ModelInfo:
            return ModelInfo(name="faulty", version="0" * 12, scale=1)

        async def upscale(self, photo: Photo, scale: float, network_scale: int) -> Upscaled:
            import os

            if photo.width == 1:
                raise KeyError("secret")
            if photo.width == 2:
                raise ResourceError("the device has no memory left")
            if photo.width == 3:
                os._exit(1)
            return Upscaled(photo, await self.describe(), 0.0)

    generator = serve.deployment(name="Faulty", num_replicas=1, max_ongoing_requests=4)(Faulty)
    options = ServiceOptions(limits=LIMITS)
    application = ingress_deployment().bind(options, generator.bind())
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
