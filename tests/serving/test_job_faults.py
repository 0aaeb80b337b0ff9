"""Jobs outlive every process: each is killed in turn with twenty of them under way; then the whole service ends."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from ray import get, serve
from ray.serve.context import _get_global_client

from ray_sr.images import Photo, decode, encode
from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.serving.app import assemble
from ray_sr.serving.catalogues import catalogue_of
from ray_sr.serving.ingress import make_api
from ray_sr.serving.job_client import JobClient
from ray_sr.serving.job_storage import JobStorage
from ray_sr.serving.options import JobLimits, ServiceLimits, ServiceOptions
from ray_sr.serving.replica import GeneratorReplica
from ray_sr.serving.schemas import ModelChoice, Permit, Upscaled
from ray_sr.serving.service import Service
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import Running, picture
from tests.serving.processes import replicas

JOBS = 20
DEADLINE_S = 150
APP = "lasting"


@dataclass(frozen=True)
class Lasting:
    """The application, started and stopped at will; `log` has a line for each work that was computed to its end."""

    url: str
    options: ServiceOptions
    log: Path
    engine: Engine

    def start(self) -> None:
        log = str(self.log)

        class Noting(GeneratorReplica):
            """Takes its time for each tile, and notes which work was computed from when to when."""

            def _run(self, *args: Any) -> Upscaled:
                *others, after_tile = args

                def slowly(share: float) -> None:
                    time.sleep(0.05)
                    after_tile(share)

                return super()._run(*others, slowly)

            async def upscale_by_tiles(
                self,
                photo: Photo,
                scale: float,
                network_scale: int,
                permit: Permit | None = None,
                choice: ModelChoice = ModelChoice(),  # noqa: B008
            ) -> AsyncIterator[float | Upscaled]:
                begin = time.time()
                async with aclosing(super().upscale_by_tiles(photo, scale, network_scale, permit, choice)) as steps:
                    async for step in steps:
                        if isinstance(step, Upscaled) and permit is not None:
                            with open(log, "a", encoding="utf-8") as file:
                                file.write(f"{permit.job} {begin} {time.time()}\n")
                        yield step

        generator = serve.deployment(
            name="Generator", num_replicas=2, max_ongoing_requests=8, ray_actor_options={"num_cpus": 0.1}
        )(Noting)
        application = assemble(self.options, generator.bind(self.options, self.options.model))
        serve.run(application, name=APP, route_prefix=f"/{APP}")

    def begin(self, png: bytes, url: str = "") -> str:
        """Sends a picture as a client does that tries again when it is told to; the key makes that safe."""
        headers = {"Idempotency-Key": os.urandom(8).hex()}
        response = until_answered("POST", f"{url or self.url}/v1/jobs", content=png, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def status(self, id: str, url: str = "") -> dict[str, Any]:
        found: dict[str, Any] = until_answered("GET", f"{url or self.url}/v1/jobs/{id}").json()
        return found

    def result(self, id: str, url: str = "") -> bytes:
        return until_answered("GET", f"{url or self.url}/v1/jobs/{id}/result").content

    def expected(self, png: bytes) -> bytes:
        return encode(upscale_photo(decode(png), self.engine), "png")

    def finished(self, ids: list[str]) -> int:
        return sum(self.status(id)["status"] == "succeeded" for id in ids)

    def wait_for(self, ids: list[str], count: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.finished(ids) < count:
            assert time.monotonic() < end, [self.status(id) for id in ids]
            time.sleep(0.2)


def until_answered(method: str, url: str, **request: Any) -> httpx.Response:
    """The first answer other than 503: the process that held a request may be the one that was killed."""
    end = time.monotonic() + DEADLINE_S
    while True:
        with suppress(httpx.TransportError):
            response = httpx.request(method, url, timeout=60, **request)
            if response.status_code != 503:
                return response
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def lasting(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lasting]:
    folder = tmp_path_factory.mktemp("lasting")
    store = Store(folder / "store")
    network = NetworkSpec(scale=2, generator=SRResNetSpec(blocks=1, channels=8))
    torch.manual_seed(5)
    store.publish("small", build_generator(network), network)
    options = ServiceOptions(
        model="small",
        store=store.root,
        device="cpu",
        precision="float32",
        tile=32,
        min_replicas=2,
        max_replicas=2,
        requests_per_replica=8,
        ingress_replicas=2,
        codec_processes=1,
        jobs=str(folder / "jobs"),
        limits=ServiceLimits(jobs=JobLimits(waiting=64, running=4, lease_s=1.5)),
    )
    model = load_model("small", store)
    engine = Engine(model.module, model.capability, device="cpu", precision="float32", tile=32)
    found = Lasting(f"{service.url}/{APP}", options, folder / "log", engine)
    found.start()
    yield found
    serve.delete(APP)


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def controller() -> int:
    client = _get_global_client()
    assert client is not None
    pid: int = get(client._controller.get_pid.remote())
    return pid


@pytest.mark.nightly  # minutes long; its waits of 150 s ran out on a busy machine
def test_jobs_outlive_every_process(lasting: Lasting) -> None:
    pictures = [encode(picture(40, 40 + number), "png") for number in range(JOBS)]
    ids = [lasting.begin(png) for png in pictures]
    kill(replicas(APP, "Ingress")[:1])
    lasting.wait_for(ids, lasting.finished(ids) + 1)
    kill(replicas(APP, "JobOwner"))
    lasting.wait_for(ids, lasting.finished(ids) + 1)
    kill(replicas(APP, "Generator"))
    lasting.wait_for(ids, lasting.finished(ids) + 1)
    kill([controller()])
    lasting.wait_for(ids, JOBS)
    for id, png in zip(ids, pictures, strict=True):
        assert lasting.result(id) == lasting.expected(png)

    computed = defaultdict(list)
    for line in lasting.log.read_text().splitlines():
        id, begin, end = line.split()
        computed[id].append((float(begin), float(end)))
    assert set(ids) <= set(computed)
    for spans in computed.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans)), "twice at once"


def test_jobs_outlive_the_whole_service(lasting: Lasting) -> None:
    small, large = encode(picture(20, 20), "png"), encode(picture(150, 150), "png")
    done = lasting.begin(small)
    lasting.wait_for([done], 1)
    unfinished = [lasting.begin(large) for _ in range(2)]
    assert lasting.finished(unfinished) == 0
    serve.delete(APP)
    lasting.start()
    assert lasting.result(done) == lasting.expected(small)
    lasting.wait_for(unfinished, 2)
    for id in unfinished:
        assert lasting.result(id) == lasting.expected(large)


class Ingress:
    """An ingress replica at an address of its own, as a thread of this process."""

    def __init__(self, options: ServiceOptions) -> None:
        owner = serve.get_deployment_handle("JobOwner", APP)
        generator = serve.get_deployment_handle("Generator", APP)
        assert options.jobs is not None
        client = JobClient(owner, JobStorage(options.jobs), ingresses=3)
        self._options, self._jobs, self._generator = options, client, generator
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        end = time.monotonic() + 30
        while self._server is None or not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def _run(self) -> None:
        catalogue = catalogue_of(self._options, [self._generator])
        with closing(Service(catalogue, self._jobs, self._options)) as service:
            self._server = uvicorn.Server(
                uvicorn.Config(make_api(service), port=0, log_level="warning", timeout_graceful_shutdown=1)
            )
            self._server.run()

    def close(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)


def test_any_ingress_begins_follows_and_serves_any_job(lasting: Lasting) -> None:
    png = encode(picture(60, 60), "png")
    with (
        closing(Ingress(lasting.options)) as one,
        closing(Ingress(lasting.options)) as two,
        closing(Ingress(lasting.options)) as three,
    ):
        id = lasting.begin(png, one.url)
        with httpx.stream("GET", f"{two.url}/v1/jobs/{id}/events", timeout=60) as response:
            events = [line for line in response.iter_lines() if line.startswith("event: ")]
        assert events[-1] == "event: end"
        assert "event: progress" in events
        assert lasting.result(id, three.url) == lasting.expected(png)
        assert lasting.status(id, one.url) == lasting.status(id, two.url) == lasting.status(id, three.url)

        headers = {"Idempotency-Key": "the same at each"}
        ids = {
            httpx.post(f"{ingress.url}/v1/jobs", content=png, headers=headers, timeout=60).json()["id"]
            for ingress in (one, two, three)
        }
        assert len(ids) == 1
        assert httpx.delete(f"{two.url}/v1/jobs/{id}", timeout=60).status_code == 200
        assert httpx.get(f"{three.url}/v1/jobs/{id}", timeout=60).status_code == 410
