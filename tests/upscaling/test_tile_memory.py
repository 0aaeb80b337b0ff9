"""The memory of a tile is measured once, and a cache in any state does no harm."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine, accelerator, tile_memory
from ray_sr.upscaling.accelerator import set_float32_products
from ray_sr.upscaling.tile_memory import (
    DEVICE,
    SharedDevice,
    cache_file,
    cached,
    growth,
    measured_bytes_per_pixel,
)
from tests.fake_cuda import describe_card, kept_settings


def _never() -> float:
    pytest.fail("it was measured again")


def test_a_figure_is_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "cache.json"
    assert cached("a", lambda: 12.5, file) == 12.5
    assert cached("b", lambda: 99, file) == 99
    assert (cached("a", _never, file), cached("b", _never, file)) == (12.5, 99)
    assert [path.name for path in file.parent.iterdir()] == ["cache.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"a": "12"}',
        b'{"a": -1}',
        b'{"a": NaN}',
        b'{"a": 0}',
        b'{"a": true}',
    ],
)
def test_a_broken_cache_is_replaced(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cache.json"
    file.write_bytes(content)
    assert cached("a", lambda: 12.5, file) == 12.5
    assert cached("a", _never, file) == 12.5


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert cached("a", lambda: 12.5, tmp_path / "taken" / "cache.json") == 12.5
    (tmp_path / "cache.json").mkdir()
    assert cached("a", lambda: 12.5, tmp_path / "cache.json") == 12.5


def test_what_cannot_be_measured_is_not_kept(tmp_path: Path) -> None:
    def no_memory(side: int) -> int:
        raise torch.OutOfMemoryError

    assert growth(no_memory) is None
    assert growth(lambda side: 1000) is None
    assert cached("a", lambda: None, tmp_path / "cache.json") is None
    assert not list(tmp_path.iterdir())


def test_what_does_not_grow_with_a_tile_is_left_out() -> None:
    assert growth(lambda side: 5_000_000 + 700 * side**2) == pytest.approx(700)


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file().is_relative_to(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_file().is_relative_to(tmp_path / "home" / ".cache")


def test_results_depend_on_no_cache_and_no_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(2)
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8))).eval()
    picture = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    results = []
    for per_pixel in (None, 1e3, 1e6, 1e7):
        found = per_pixel
        monkeypatch.setattr("ray_sr.upscaling.engine.measured_bytes_per_pixel", lambda *_, found=found: found)
        engine = Engine(network, network.capability)
        results.append((engine.tile, engine.run(picture, np.uint8).astype(int)))
    tiles = [tile for tile, _ in results]
    assert len(set(tiles)) >= 3, tiles
    assert all(np.abs(result - results[0][1]).max() <= 1 for _, result in results)


@pytest.mark.parametrize(("slope", "kept"), [(1000, True), (300, False), (9001, False)])
def test_only_plausible_figures_are_kept(
    slope: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_card(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tile_memory, "_peak", lambda network, capability, device, side: slope * side**2)
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8)))
    measure = partial(
        measured_bytes_per_pixel, network, network.capability, torch.device("cuda"), "float32", 1500.0
    )
    assert measure() == (slope if kept else None)
    assert cache_file().exists() is kept
    if kept:  # a figure of another driver is not taken
        monkeypatch.setattr(accelerator, "driver_version", lambda: "999.1")
        monkeypatch.setattr(tile_memory, "_peak", lambda network, capability, device, side: 2 * slope * side**2)
        assert measure() == 2 * slope


def test_a_measurement_is_alone_and_without_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[str] = []
    inside, free = threading.Event(), threading.Event()

    def peak(network: object, capability: object, device: object, side: int) -> int:
        seen.extend(["measured", torch.backends.cudnn.conv.fp32_precision])  # type: ignore[attr-defined]
        return 1000 * side**2

    def run() -> None:
        with DEVICE.among_others():
            inside.set()
            assert free.wait(60)
            seen.append("run")

    monkeypatch.setattr(tile_memory, "_peak", peak)
    monkeypatch.setattr(tile_memory, "PATIENCE_SECONDS", 60.0)
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8)))
    with kept_settings(), ThreadPoolExecutor(2) as pool:
        set_float32_products("tf32")
        running = pool.submit(run)
        assert inside.wait(60)
        measured = pool.submit(
            measured_bytes_per_pixel, network, network.capability, torch.device("cuda"), "float32", 1000.0
        )
        assert not seen
        free.set()
        running.result(60)
        assert measured.result(60) == 1000
    assert seen == ["run", "measured", "ieee", "measured", "ieee"]


def test_what_cannot_be_measured_alone_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tile_memory, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(tile_memory, "_peak", lambda *_: pytest.fail("others were running"))
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8)))
    with DEVICE.among_others():
        figure = measured_bytes_per_pixel(network, network.capability, torch.device("cuda"), "float32", 1000.0)
    assert figure is None
    assert not cache_file().exists()


def test_the_peak_of_a_training_outlives_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([7000, 100, 300])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    shared = SharedDevice()
    shared.reset_peak(torch.device("cuda"))
    assert [shared.peak(torch.device("cuda")) for _ in range(2)] == [7000, 7000]
