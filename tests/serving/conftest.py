"""One small service for all HTTP tests, with limits that are cheap to reach."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from ray_sr.images import Photo, encode
from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.serving.options import JobLimits, ServiceLimits, ServiceOptions
from ray_sr.serving.run import running_service
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine
from tests.image_files import chunk
from tests.serving.page_browser import chromium, find_chromium

# A picture of 1024x1024 keeps this network busy for far longer than the deadline, one of 32x24 for a blink.
LIMITS = ServiceLimits(
    body_bytes=300_000,
    input_pixels=1 << 20,
    result_pixels=1 << 24,
    side=4096,
    body_deadline_s=1,
    request_deadline_s=6,
    in_flight_pixels=(1 << 24) + (1 << 20),
    jobs=JobLimits(input_pixels=3 << 19, result_pixels=3 << 23),
)


@dataclass(frozen=True)
class Running:
    """The service under test, and what is needed to do its work without it."""

    url: str
    options: ServiceOptions
    store: Store


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> ServiceOptions:
    store = Store(tmp_path_factory.mktemp("store"))
    network = NetworkSpec(scale=4, generator=SRResNetSpec(blocks=16, channels=32))
    torch.manual_seed(7)
    store.publish("portrait", build_generator(network), network)
    return ServiceOptions(
        model="portrait",
        store=store.root,
        device="cpu",
        precision="float32",
        tile=96,
        cpus=1,
        ingress_replicas=2,
        codec_processes=1,
        limits=LIMITS,
    )


@pytest.fixture(scope="package")  # its replicas hold CPUs, which the tests of training need
def service(ray_local: None, options: ServiceOptions) -> Iterator[Running]:
    with running_service(options) as url:
        yield Running(url, options, Store(options.store))


def picture(height: int, width: int, *, channels: int = 3, alpha: bool = False, depth: int = 8) -> Photo:
    """A seeded picture of smooth colours with some grain."""
    random = np.random.default_rng([height, width, channels, depth])
    largest, kind = (255, np.uint8) if depth == 8 else (65535, np.uint16)
    slope = np.linspace(0.1, 0.8, height)[:, None, None] * np.linspace(0.3, 1, width)[None, :, None]
    values = slope + random.uniform(0, 0.1, (height, width, channels))
    opacity = (np.linspace(0, 1, width)[None, :] * np.ones((height, 1)) * largest).astype(kind)
    return Photo((values * largest).astype(kind), alpha=opacity if alpha else None)


def flat_png(height: int, width: int) -> bytes:
    """A PNG of one colour: many pixels in few bytes."""
    return encode(Photo(np.full((height, width, 3), 99, np.uint8)), "png")


BIG = (1024, 1024)


def png_of(width: int, height: int, pixels: bytes, colour: int = 2) -> bytes:
    """A PNG whose chunks are right, around pixels that may be anything."""
    size = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", size), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture(scope="package")
def engine(service: Running) -> Engine:
    """The engine of the replica, rebuilt in this process."""
    torch.set_num_threads(1)
    model = load_model(service.options.model, service.store)
    return Engine(model.module, model.capability, device="cpu", precision="float32", tile=96)


@pytest.fixture(scope="session")
def small_png() -> bytes:
    return encode(picture(24, 32), "png")


@pytest.fixture(scope="session")  # so that tests skip before the service is started for them
def chromium_path() -> str:
    return find_chromium()


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Any]:
    with chromium(chromium_path) as started:
        yield started
