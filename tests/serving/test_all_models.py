"""Every model at hand in one deployment: told by what it is for, loaded when it is asked for, kept by use."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from ray import serve

from ray_sr.images import decode
from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.serving.app import build
from ray_sr.serving.model_cache import ModelCache
from ray_sr.serving.options import ServiceOptions
from ray_sr.store import Store, load_model
from ray_sr.store.blending import blended
from ray_sr.store.store import SHIPPED, Model
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import LIMITS, Running
from tests.serving.page_browser import Visit

APP = "all-models"


@dataclass(frozen=True)
class All:
    """The service, and the store that it offers beside the models of ray-sr."""

    url: str
    store: Store

    def post(self, png: bytes, query: str = "") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/upscale{query}", content=png, timeout=120)

    def models(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = httpx.get(f"{self.url}/v1/models", timeout=60).json()["models"]
        return found


@pytest.fixture(scope="module")
def everything(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[All]:
    folder = tmp_path_factory.mktemp("all")
    store = Store(folder / "store")
    publish(store, "tiny", seed=1)
    options = ServiceOptions(
        model="best",
        all_models=True,
        models_bytes=6 << 20,  # one of the models that come with ray-sr, and a tiny one
        store=store.root,
        follow_s=0.2,
        device="cpu",
        precision="float32",
        cpus=0.1,
        codec_processes=1,
        jobs=str(folder / "jobs"),
        limits=LIMITS.model_copy(update={"body_deadline_s": 30, "request_deadline_s": 60}),
    )
    serve.run(build(options), name=APP, route_prefix=f"/{APP}")
    yield All(f"{service.url}/{APP}", store)
    serve.delete(APP)


def publish(store: Store, name: str, seed: int) -> str:
    network = NetworkSpec(scale=2, generator=SRResNetSpec(blocks=1, channels=8))
    torch.manual_seed(seed)
    return f"{name}@{store.publish(name, build_generator(network), network)}"


def is_made_by(model: Model, response: httpx.Response, png: bytes) -> bool:
    """Within a level: with other numbers of threads, sums between two levels may be rounded to either."""
    engine = Engine(model.module, model.capability, device="cpu", precision="float32")
    expected = upscale_photo(decode(png), engine).pixels.astype(int)
    found = decode(response.content).pixels.astype(int)
    return found.shape == expected.shape and int(np.abs(found - expected).max()) <= 1


def load_ms(response: httpx.Response) -> float:
    """Milliseconds that the model was waited for; 0 where Server-Timing does not name it."""
    assert response.status_code == 200, response.text
    found = re.search(r"load;dur=([\d.]+)", response.headers["server-timing"])
    return float(found[1]) if found else 0.0


def test_all_models_are_told_by_what_they_are_for(everything: All) -> None:
    found = {model["id"]: model for model in everything.models()}
    assert next(iter(found)) == "best", "the default comes first"
    purposes = {id: model["purpose"] for id, model in found.items()}
    assert purposes["clean"] == purposes["light-x4"] == purposes["light-gan-x4"] == "clean"
    assert purposes["best"] == purposes["light-jpeg-x4"] == "unknown"
    assert purposes["deblur-light"] == "deblurring"
    assert purposes["bicubic"] == "interpolation"
    assert purposes["tiny"] == "other", "nothing is known of its making"
    assert {model["name"] for model in found.values()} >= {record.name for record in Store(SHIPPED).list()}
    assert found["light-gan-x4"]["description"]
    assert httpx.get(f"{everything.url}/readyz", timeout=60).status_code == 200


def test_model_is_loaded_when_it_is_asked_for_and_kept_by_use(everything: All, small_png: bytes) -> None:
    assert is_made_by(load_model("best", everything.store), everything.post(small_png), small_png)
    first = everything.post(small_png, "?model=light-gan-x4&metadata=none")
    assert load_ms(first) > 0
    assert first.headers["raysr-model"].startswith("light-gan-x4@")
    assert is_made_by(load_model("light-gan-x4", everything.store), first, small_png)
    assert load_ms(everything.post(small_png, "?model=light-gan-x4")) == 0, "it is still there"
    assert load_ms(everything.post(small_png)) > 0, "best had to go for it"
    assert load_ms(everything.post(small_png, "?model=bicubic")) > 0
    assert load_ms(everything.post(small_png)) == 0, "bicubic takes no room"


def test_many_that_want_the_same_model_load_it_once(everything: All, small_png: bytes) -> None:
    load_ms(everything.post(small_png, "?model=light-gan-x4"))
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: everything.post(small_png, "?model=light-jpeg-x4"), range(4)))
    model = load_model("light-jpeg-x4", everything.store)
    assert all(is_made_by(model, answer, small_png) for answer in answers)


def test_jobs_take_any_model(everything: All, small_png: bytes) -> None:
    job = httpx.post(f"{everything.url}/v1/jobs?model=deblur-light", content=small_png, timeout=60).json()
    with httpx.stream("GET", f"{everything.url}/v1/jobs/{job['id']}/events", timeout=120) as response:
        last = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")][-1]
    assert last["status"] == "succeeded", last
    answer = httpx.get(f"{everything.url}/v1/jobs/{job['id']}/result", timeout=60)
    assert is_made_by(load_model("deblur-light", everything.store), answer, small_png)


def test_what_is_published_while_it_runs_is_offered(everything: All, small_png: bytes) -> None:
    earlier = next(record.ref for record in everything.store.list() if record.name == "tiny")
    later = publish(everything.store, "tiny", seed=2)
    publish(everything.store, "late", seed=3)
    with_late = lambda: "late" in {model["id"] for model in everything.models()}  # noqa: E731
    while not with_late():
        pass
    assert everything.post(small_png, "?model=tiny").headers["raysr-model"] == later
    answer = everything.post(small_png, f"?model={earlier}")
    assert is_made_by(load_model(earlier, everything.store), answer, small_png)


def test_unknown_models_are_refused_with_the_nearest(everything: All, small_png: bytes) -> None:
    refused = everything.post(small_png, "?model=light-gam-x4")
    assert refused.status_code == 422
    assert "did you mean light-gan-x4?" in refused.json()["detail"]


def test_denoise_is_what_the_command_line_blends(everything: All, small_png: bytes) -> None:
    models = {model["id"]: model["denoise"] for model in everything.models()}
    assert models["clean"]
    assert models["light-gan-x4"]
    assert not models["best"], "it is a cleaning model"
    assert not models["light-jpeg-x4"], "the other one"
    assert not models["bicubic"]
    for name, cleaning in (("clean", "real-x4-smooth"), ("light-x4", "light-jpeg-x4")):
        alone = load_model(name, everything.store)
        model = blended(alone, load_model(cleaning, everything.store), 0.4)
        answer = everything.post(small_png, f"?denoise=0.4&model={name}")
        assert is_made_by(model, answer, small_png)
        assert not is_made_by(alone, answer, small_png), "it is not the model alone"
        assert answer.headers["raysr-model"] == f"{model.name}@{model.version}"
    assert load_ms(everything.post(small_png, "?denoise=0.4&model=light-x4")) == 0
    refused = everything.post(small_png, "?denoise=0.4")
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (422, "denoise")
    assert "cleans by itself" in refused.json()["detail"]
    assert everything.post(small_png, "?denoise=1.5").status_code == 422
    assert everything.models()[0]["version"] == load_model("best", everything.store).version


@pytest.mark.fast
def test_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    loaded: list[str] = []

    def load(key: str) -> tuple[str, int]:
        loaded.append(key)
        return key.upper(), 40

    async def scenario() -> None:
        cache: ModelCache[str, str] = ModelCache(100, load)
        assert (await asyncio.gather(*(cache.get("a") for _ in range(5))))[0][0] == "A"
        assert loaded == ["a"]
        await cache.get("b")
        await cache.get("a")
        await cache.get("c")
        assert cache.bytes <= 100
        assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
        cache.put("huge", "HUGE", 1000)
        assert (await cache.get("huge")) == ("HUGE", 0.0)
        assert "c" not in cache

    asyncio.run(scenario())


def test_page_groups_models_and_blends(everything: All, browser: Any, small_png: bytes) -> None:
    page = Visit(browser, f"{everything.url}/")
    page.pick(small_png)
    page.sees("#model-note", "photographs of unknown quality")
    assert not page.tab.locator("#cleaning").is_visible(), "it cleans by itself"
    groups = page.tab.eval_on_selector_all("#model optgroup", "groups => groups.map(group => group.label)")
    assert groups == [
        "Photos of unknown quality",
        "Clean photos",
        "Blurred photos",
        "Other models",
        "Without a network",
    ]
    page.tab.select_option("#model", "clean")
    page.sees("#cleaning", "off")
    page.tab.locator("#denoise").fill("0.3")
    page.sees("#cleaning", "30 %")
    assert page.violations() == ""
    page.tab.click("#go")
    page.sees("#made-by", "+0.3*real-x4-smooth")
    page.tab.select_option("#model", "deblur-light")
    page.sees("#scales", "Same size, sharper")
    assert not page.tab.locator("#cleaning").is_visible()
    page.tab.click("#go")
    page.sees("#made-by", "deblur-light@")
    page.context.close()
    assert page.errors == []
