"""The memory of a tile is measured once, and a cache in any state does no harm."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine
from ray_sr.upscaling.tile_memory import cache_file, cached, growth, measured_bytes_per_pixel


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_and_the_figure_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=32))).eval().cuda()
    device = torch.device("cuda")
    first = measured_bytes_per_pixel(network, network.capability, device, "float32")
    assert first is not None
    assert 4 * 3 * 4 <= first <= 4 * 32 * 10
    monkeypatch.setattr("ray_sr.upscaling.tile_memory._peak", lambda *_: pytest.fail("it was measured again"))
    assert measured_bytes_per_pixel(network, network.capability, device, "float32") == first
    assert os.listdir(tmp_path / "ray-sr") == ["tile-memory.json"]
