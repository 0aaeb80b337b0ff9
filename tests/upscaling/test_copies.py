"""Tiles that travel while others are computed: the same pixels, never more than two at once, in the right order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import pytest
import torch

from ray_sr.models import Capability, Generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine
from ray_sr.upscaling.copies import Copies
from ray_sr.upscaling.tile_results import TileResults
from tests.fake_cuda import Streams, Waits, fake_tensors
from tests.models.networks import build
from tests.photos import noise
from tests.upscaling.test_engine import _MemoryHog, _OverflowsInBfloat16, _plain, _Sharpen

CUDA = torch.device("cuda", 0)


class Late:
    """Copies of a device that is late: nothing has arrived before it is waited for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.under_way = self.most = 0

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        self.log.append("sent")
        return tensor.clone()

    def download(self, tensors: Iterable[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        kept = [tensor.clone() for tensor in tensors]
        copied = [torch.full_like(tensor, 1) for tensor in kept]
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def wait() -> list[torch.Tensor]:
            self.log.append("waited")
            self.under_way -= 1
            with torch.inference_mode():
                for target, source in zip(copied, kept, strict=True):
                    target.copy_(source)
            return copied

        return wait


def late(engine: Engine) -> Late:
    copies = Late()
    engine.copies = cast(Copies, copies)
    return copies


def small() -> Generator:
    return build(NetworkSpec(scale=2, generator=CompactSpec(convs=1, channels=4)))


@pytest.mark.parametrize(
    ("kind", "channels", "options"),
    [
        (np.uint8, 3, {}),
        (np.uint8, 1, {"batch": 2}),
        (np.uint16, 3, {"batch": 2}),
        (np.uint16, 1, {}),
        (np.float32, 3, {}),
        (np.float32, 1, {"ensemble": True}),
    ],
)
def test_pixels_are_those_of_tiles_that_are_waited_for(kind: type, channels: int, options: dict[str, Any]) -> None:
    network, picture = small(), noise(100, 110)[..., :channels]
    photo = (picture / np.float32(255)).astype(np.float32) if kind is np.float32 else picture.astype(kind)
    engines = [Engine(network, network.capability, tile=48, overlap=4, **options) for _ in range(2)]
    copies = late(engines[1])
    plain, copied = (list(engine.bands(photo, kind)) for engine in engines)
    assert [top for top, _ in plain] == [top for top, _ in copied]
    for (_, one), (_, other) in zip(plain, copied, strict=True):
        np.testing.assert_array_equal(one, other)
    assert engines[0].stats == engines[1].stats
    assert copies.under_way == 0


def test_a_tile_is_sent_before_the_last_one_is_waited_for_and_no_more() -> None:
    network = small()
    engine = Engine(network, network.capability, tile=48, overlap=4)
    copies = late(engine)
    engine.run(noise(120, 120))
    tiles = engine.stats.tiles
    assert tiles > 4
    assert copies.log == ["sent", *["sent", "waited"] * (tiles - 1), "waited"]
    assert copies.most == 2


def test_a_reader_who_stops_leaves_the_rest_undone() -> None:
    network = small()
    engine = Engine(network, network.capability, tile=48, overlap=4)
    copies = late(engine)
    bands = engine.bands(noise(160, 40))
    next(bands)
    bands.close()  # type: ignore[attr-defined]
    assert copies.log.count("sent") == 2


def test_tiles_that_are_not_finite_are_run_again() -> None:
    torch.manual_seed(3)
    module, picture = _OverflowsInBfloat16(), noise(100, 100).clip(0, 250)
    picture[60, 60] = 255
    capability = Capability(1, 3, 1, 2, True, False)
    engines = [Engine(module, capability, precision="bf16", tile=32, batch=2) for _ in range(2)]
    late(engines[1])
    np.testing.assert_array_equal(*(engine.run(picture) for engine in engines))
    assert engines[0].stats == engines[1].stats
    assert engines[1].stats.reruns


def test_what_is_done_stays_when_memory_runs_out() -> None:
    model, picture = _MemoryHog(), noise(300, 50)
    model.limit = 10**6
    engine = Engine(model, model.capability, precision="float32", tile=64)
    copies = late(engine)
    bands = engine.bands(picture)
    parts = [next(bands)[1]]
    hog = engine._exact
    assert isinstance(hog, _MemoryHog)
    hog.limit = 30 * 30
    parts += [band for _, band in bands]
    assert engine.stats.halvings
    assert copies.under_way == 0
    assert np.abs(np.concatenate(parts) - _plain(_Sharpen(), picture)).max() < 1e-6


def test_known_tiles_are_not_sent_and_what_is_kept_is_no_page_locked_memory() -> None:
    network = small()
    engine = Engine(network, network.capability, tile=48, overlap=4)
    copies, engine.tile_results = late(engine), TileResults()
    picture = noise(100, 100)
    first = engine.run(picture, np.uint8)
    sent = copies.log.count("sent")
    assert all(kept.base is None for kept in engine.tile_results._results.values())
    np.testing.assert_array_equal(engine.run(picture, np.uint8), first)
    assert copies.log.count("sent") == sent
    assert engine.stats.reused == engine.stats.tiles / 2


def test_streams_wait_for_each_other_and_the_host_for_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    copies = Copies(CUDA)
    with fake_tensors():
        with Waits() as waits:
            there = copies.upload(torch.zeros(2, 3))
            wait = copies.download([there.t(), there.sum()])
        assert not waits.found
        assert there.device == CUDA
        assert streams.log == [
            "there begins",
            "network waits for there",
            "kept for network",
            "back waits for network",
            "back begins",
            "kept for back",
            "kept for back",
        ]
        back = wait()
        assert streams.log[-1] == "host waits for back"
        assert [(tensor.device.type, tuple(tensor.shape)) for tensor in back] == [("cpu", (3, 2)), ("cpu", ())]
