"""Jobs outlive every process: each is killed in turn with twenty of them under way; then the whole service ends."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, contextmanager, suppress
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
from ray_sr.serving.keys import add_key
from ray_sr.serving.options import JobLimits, ServiceLimits, ServiceOptions
from ray_sr.serving.replica import GeneratorReplica
from ray_sr.serving.schemas import ModelChoice, Permit, Upscaled
from ray_sr.serving.service import Service
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import Running, picture
from tests.serving.processes import replicas

DEADLINE_S = 150
APP = "lasting"


@dataclass(frozen=True)
class Lasting:
    """The application, started and stopped at will; `log` has a line for each work that was computed to its end.

    Work stops after its first tiles for as long as there is no file `gate`.
    """

    url: str
    options: ServiceOptions
    log: Path
    gate: Path
    engine: Engine

    def start(self) -> None:
        log, gate = str(self.log), str(self.gate)

        class Noting(GeneratorReplica):
            """Takes its time for each tile, and notes which work was computed from when to when."""

            def _run(self, *args: Any) -> Upscaled:
                *others, abandoned, after_tile = args if len(args) == 6 else (*args, None)
                if after_tile is None:  # a request: only jobs are held up
                    return super()._run(*others, abandoned)

                def slowly(share: float) -> None:
                    time.sleep(0.05)
                    while share > 0 and not os.path.exists(gate) and not abandoned.is_set():
                        time.sleep(0.02)
                    after_tile(share)

                return super()._run(*others, abandoned, slowly)

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

    def computed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def let_one_through(self, ids: list[str]) -> None:
        """Opens the gate until one more job is done, a few at most, while there are any."""
        count = min(len(ids), self.finished(ids) + 1)
        end = time.monotonic() + DEADLINE_S
        while self.finished(ids) < count:
            assert time.monotonic() < end, [self.status(id) for id in ids]
            before, until = len(self.computed()), time.monotonic() + 5
            self.gate.touch()
            while len(self.computed()) == before and time.monotonic() < until:
                time.sleep(0.02)
            self.gate.unlink()


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
    found = Lasting(f"{service.url}/{APP}", options, folder / "log", folder / "gate", engine)
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


def victims(which: str) -> list[int]:
    if which == "Controller":
        return [controller()]
    found = replicas(APP, which)
    return found[:1] if which == "Ingress" else found


@pytest.mark.parametrize(
    ("jobs", "killed"),
    [
        pytest.param(5, ["JobOwner", "Generator"], id="5-jobs"),
        pytest.param(
            20,
            ["Ingress", "JobOwner", "Generator", "Controller"],
            id="20-jobs",
            marks=pytest.mark.nightly,  # minutes long
        ),
    ],
)
def test_jobs_outlive_every_process(lasting: Lasting, jobs: int, killed: list[str]) -> None:
    pictures = [encode(picture(40, 40 + number), "png") for number in range(jobs)]
    lasting.gate.unlink(missing_ok=True)
    ids = [lasting.begin(png) for png in pictures]
    for which in killed:
        assert lasting.finished(ids) < jobs, "nothing is under way any more"
        kill(victims(which))
        lasting.let_one_through(ids)
    lasting.gate.touch()
    lasting.wait_for(ids, jobs)
    for id, png in zip(ids, pictures, strict=True):
        assert lasting.result(id) == lasting.expected(png)

    computed = defaultdict(list)
    for line in lasting.computed():
        id, begin, end = line.split()
        computed[id].append((float(begin), float(end)))
    assert set(ids) <= set(computed)
    for spans in computed.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans)), "twice at once"


def test_jobs_outlive_the_whole_service(lasting: Lasting) -> None:
    small, large = encode(picture(20, 20), "png"), encode(picture(150, 150), "png")
    lasting.gate.touch()
    done = lasting.begin(small)
    lasting.wait_for([done], 1)
    lasting.gate.unlink()
    unfinished = [lasting.begin(large) for _ in range(2)]
    assert lasting.finished(unfinished) == 0
    serve.delete(APP)
    lasting.start()
    lasting.gate.touch()
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


@contextmanager
def three_ingresses(options: ServiceOptions) -> Iterator[list[Ingress]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Ingress(options))) for _ in range(3)]


def test_any_ingress_begins_follows_and_serves_any_job(lasting: Lasting) -> None:
    png = encode(picture(60, 60), "png")
    lasting.gate.touch()
    with three_ingresses(lasting.options) as (one, two, three):
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


def test_quotas_hold_over_ingress_replicas(lasting: Lasting, tmp_path: Path, small_png: bytes) -> None:
    """The owner counts exactly; while it is replaced, no more than the bound of docs/endpoint.md goes through."""
    allowed, pixels = 12, 4 * 24 * 32
    key = add_key(tmp_path / "keys.json", "poor", pixels_per_minute=allowed * pixels)
    options = lasting.options.model_copy(update={"keys": str(tmp_path / "keys.json")})

    def answered(ingress: Ingress) -> int:
        response = httpx.post(
            f"{ingress.url}/v1/upscale", content=small_png, headers={"X-API-Key": key}, timeout=60
        )
        assert response.status_code in (200, 429), response.text
        return int(response.status_code == 200)

    with three_ingresses(options) as ingresses:
        begin = time.monotonic()
        answers = [answered(ingress) for _ in range(allowed) for ingress in ingresses]
        filled_again = 1 + allowed * (time.monotonic() - begin) / 60
        assert all(answers[:allowed])
        assert sum(answers) <= allowed + filled_again

        kill(replicas(APP, "JobOwner"))
        with ThreadPoolExecutor(len(ingresses)) as clients:  # each gives out its own share, or the next owner all
            meanwhile = sum(sum(clients.map(answered, ingresses)) for _ in range(allowed))
        filled_again = 1 + allowed * (time.monotonic() - begin) / 60
        assert 0 < meanwhile <= 2 * allowed + filled_again
