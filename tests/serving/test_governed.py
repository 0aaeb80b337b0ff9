"""An application with keys, two models, of which one is a channel that is followed, and an access log."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import torch
from ray import serve

from ray_sr.images import decode, encode
from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.serving.app import build
from ray_sr.serving.keys import add_key
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.webhooks import origin_of
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import LIMITS, Running, picture
from tests.serving.webhook_receiver import SECRET, Receiver

DEADLINE_S = 60


@dataclass(frozen=True)
class Governed:
    """The application, the keys of two clients, and the versions in its store: two of x4, one of x2."""

    url: str
    store: Store
    key: str
    poor: str
    versions: tuple[str, str, str]
    log: Path
    receiver: Receiver

    def post(
        self, body: bytes, query: str = "", key: str | None = None, path: str = "/v1/upscale"
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.post(f"{self.url}{path}{query}", content=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def governed(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    folder = tmp_path_factory.mktemp("governed")
    store = Store(folder / "store")
    versions = []
    for seed, scale in ((1, 4), (2, 4), (3, 2)):
        network = NetworkSpec(scale=scale, generator=SRResNetSpec(blocks=1, channels=8))
        torch.manual_seed(seed)
        versions.append("tiny@" + store.publish("tiny", build_generator(network), network))
    store.promote(versions[0], "best")
    keys, log, secret = folder / "keys.json", folder / "access.jsonl", folder / "secret"
    secret.write_text("whsec_" + base64.b64encode(SECRET).decode())
    receiver = Receiver()
    options = ServiceOptions(
        model="best",
        jobs=str(folder / "jobs"),
        further_models=("bicubic",),
        store=store.root,
        follow_s=0.2,
        device="cpu",
        precision="float32",
        cpus=0.1,
        codec_processes=1,
        keys=str(keys),
        access_log=str(log),
        cors_origins=("https://pages.example.org",),
        webhook_origins=(origin_of(receiver.url),),
        webhook_secret=str(secret),
        limits=LIMITS.model_copy(update={"body_deadline_s": 30, "request_deadline_s": 60}),
    )
    rich, poor = add_key(keys, "rich"), add_key(keys, "poor", pixels_per_minute=30 * 16 * 24 * 32)
    serve.run(build(options), name="governed", route_prefix="/governed")
    one, two, three = versions
    yield Governed(f"{service.url}/governed", store, rich, poor, (one, two, three), log, receiver)
    serve.delete("governed")
    receiver.shutdown()
    receiver.server_close()


def kind_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["type"].removeprefix("/problems/")


def expected(store: Store, ref: str, png: bytes) -> bytes:
    model = load_model(ref, store)
    engine = Engine(model.module, model.capability, device="cpu", precision="float32")
    return encode(upscale_photo(decode(png), engine), "png")


def test_models_can_be_chosen(governed: Governed, small_png: bytes) -> None:
    models = httpx.get(f"{governed.url}/v1/models").json()["models"]
    assert [(model["id"], model["name"]) for model in models] == [("best", "tiny"), ("bicubic", "bicubic")]
    answers = {
        name: governed.post(small_png, f"?model={name}")
        for name in ("best", "tiny", "bicubic", models[0]["version"])
    }
    assert answers["best"].headers["raysr-model"] == governed.versions[0]
    assert (
        answers["tiny"].content
        == answers["best"].content
        == expected(governed.store, governed.versions[0], small_png)
    )
    assert answers["bicubic"].headers["raysr-model"] == "bicubic@built-in"
    assert kind_of(answers[models[0]["version"]]) == (422, "invalid-parameter")
    misspelt = governed.post(small_png, "?model=bicubik")
    assert kind_of(misspelt) == (422, "invalid-parameter")
    assert "did you mean bicubic?" in misspelt.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/upscale", "/v1/jobs"])
def test_pictures_need_a_key(governed: Governed, small_png: bytes, path: str) -> None:
    without = httpx.post(f"{governed.url}{path}", content=small_png)
    assert kind_of(without) == (401, "unauthorized")
    assert without.headers["www-authenticate"].startswith("Bearer")
    assert kind_of(governed.post(small_png, key="rsr_wrong", path=path)) == (401, "unauthorized")
    other_header = {"X-API-Key": governed.key}
    assert httpx.post(f"{governed.url}{path}", content=small_png, headers=other_header).status_code in (200, 202)


def test_information_needs_none(governed: Governed) -> None:
    for path in ("/", "/healthz", "/readyz", "/v1/limits", "/v1/models", "/openapi.json", "/v2/health/ready"):
        assert httpx.get(f"{governed.url}{path}").status_code == 200, path


def test_jobs_are_their_owners_own(governed: Governed, small_png: bytes) -> None:
    job = governed.post(small_png, path="/v1/jobs").json()["id"]
    address = f"{governed.url}/v1/jobs/{job}"
    assert kind_of(httpx.get(address)) == (401, "unauthorized")
    assert kind_of(httpx.get(address, headers={"X-API-Key": governed.poor})) == (404, "not-found")
    mine = httpx.get(address, headers={"X-API-Key": governed.key})
    assert mine.status_code == 200
    url = mine.json()["result_url"]
    assert url is None or url.startswith("/governed/v1/jobs/")


def test_quota_is_in_pixels(governed: Governed, small_png: bytes) -> None:
    large = encode(picture(120, 160), "png")  # 25 of the 30 small pictures that are allowed a minute
    assert governed.post(large, key=governed.poor).status_code == 200
    refused = governed.post(large, key=governed.poor)
    assert kind_of(refused) == (429, "rate-limited")
    assert 0 < int(refused.headers["retry-after"]) <= 61
    assert governed.post(small_png, key=governed.poor).status_code == 200
    assert governed.post(large).status_code == 200, "another client is not held up"


def logged(log: Path, request: str) -> dict[str, Any]:
    """The line of a request, which is written after its answer has gone out."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        whole = log.read_text().rpartition("\n")[0].splitlines()
        found = [line for line in map(json.loads, whole) if line["request"] == request]
        if found:
            assert len(found) == 1
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"no line of {request} within 20 s")


def test_access_log_tells_who_and_what_but_no_picture(governed: Governed, small_png: bytes) -> None:
    headers = {"X-API-Key": governed.key, "X-Request-Id": "look-for-me"}
    httpx.post(f"{governed.url}/v1/upscale", content=small_png[:60], headers=headers)
    entry = logged(governed.log, "look-for-me")
    assert (entry["key"], entry["method"], entry["status"]) == ("rich", "POST", 422)
    assert entry["problem"] == "image-corrupt"
    assert entry["bytes_in"] == 60
    assert entry["path"].endswith("/v1/upscale")
    assert governed.key not in governed.log.read_text()


class Load:
    """Clients that send the same picture again and again; every answer is held against the model it names."""

    def __init__(self, governed: Governed, png: bytes, clients: int) -> None:
        self._governed, self._png = governed, png
        self._right = {ref: expected(governed.store, ref, png) for ref in governed.versions}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.wrong: list[str] = []
        self.answers = 0
        self.latest = ""

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
            response = self._governed.post(self._png)
            model = response.headers.get("raysr-model", "")
            if response.status_code != 200 or response.content != self._right[model]:
                self.wrong.append(f"{response.status_code} {model} {response.text[:200]}")
            self.answers += 1
            self.latest = model

    def wait_for(self, model: str) -> None:
        end = time.monotonic() + DEADLINE_S
        before = self.answers
        while self.latest != model or self.answers < before + 20:
            assert time.monotonic() < end, (model, self.latest)
            time.sleep(0.02)


def test_promotion_and_rollback_under_load_fail_no_request(governed: Governed, small_png: bytes) -> None:
    first, second, half = governed.versions
    with Load(governed, small_png, clients=3) as load:
        load.wait_for(first)
        governed.store.promote(second, "best")
        load.wait_for(second)
        governed.store.promote(half, "best")  # one that enlarges only twice
        load.wait_for(half)
        governed.store.rollback("best")
        load.wait_for(second)
        governed.store.rollback("best")
        load.wait_for(first)
    assert load.wrong == []
    assert load.answers >= 100


def test_end_of_a_job_is_told_where_that_is_allowed(governed: Governed, small_png: bytes) -> None:
    address = quote(governed.receiver.url, safe="")
    job = governed.post(small_png, f"?webhook={address}", path="/v1/jobs").json()["id"]
    end = time.monotonic() + DEADLINE_S
    while not governed.receiver.got:
        assert time.monotonic() < end
        time.sleep(0.05)
    ((_, headers, body),) = governed.receiver.got
    assert headers["webhook-id"] == job
    assert json.loads(body)["data"]["result_url"] == f"/governed/v1/jobs/{job}/result"
    refused = governed.post(small_png, "?webhook=https%3A%2F%2Fevil.example.org%2F", path="/v1/jobs")
    assert kind_of(refused) == (422, "invalid-parameter")


def test_pages_of_allowed_origins_may_ask(governed: Governed, small_png: bytes) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://pages.example.org", True), ("https://evil.example.org", False)):
        before = httpx.options(f"{governed.url}/v1/upscale", headers={"Origin": origin, **ask})
        assert (before.headers.get("access-control-allow-origin") == origin) is allowed
        headers = {"Origin": origin, "X-API-Key": governed.key}
        answer = httpx.post(f"{governed.url}/v1/upscale", content=small_png, headers=headers, timeout=60)
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        refused = httpx.post(f"{governed.url}/v1/upscale", content=small_png, headers={"Origin": origin})
        assert refused.status_code == 401
        assert (refused.headers.get("access-control-allow-origin") == origin) is allowed


def test_quota_of_jobs_and_pictures_is_one(governed: Governed) -> None:
    """The bucket may be empty from another test; what it holds is less than two of these pictures."""
    large = encode(picture(120, 160), "png")
    statuses = [governed.post(large, key=governed.poor, path="/v1/jobs").status_code for _ in range(2)]
    assert statuses[-1] == 429
    assert governed.post(large, key=governed.poor).status_code == 429
