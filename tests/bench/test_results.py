"""`make results`: each row is what evaluation gives, for our models and for peers from a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import results
from ray_sr.evaluation import evaluate
from ray_sr.metrics import luma, psnr
from ray_sr.models import build_generator
from ray_sr.recipes.networks import DeblurGANSpec, NetworkSpec
from ray_sr.store import Store, load_model
from ray_sr.store import store as model_store
from tests.photos import write_real_photos
from tests.small_models import NETWORK, generator

DEBLUR = NetworkSpec(scale=1, generator=DeblurGANSpec(blocks=1, channels=4))
PEERS = """
from torch import nn
PEERS = {("nearest", 2): None, ("nearest", 4): None}
def load(name, scale):
    return nn.Upsample(scale_factor=scale)
"""


@pytest.mark.slow
def test_rows_are_what_evaluation_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_store, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "shipped")
    Store(tmp_path / "shipped").publish("light", generator(1), NETWORK)
    Store(tmp_path / "shipped").publish("deblur", build_generator(DEBLUR), DEBLUR)
    folder = write_real_photos(tmp_path / "sets" / "Two" / "HR", side=64)
    deblur = _pairs(tmp_path / "real", min(folder.iterdir()))
    peers, table, rows = tmp_path / "peers.py", tmp_path / "RESULTS.md", tmp_path / "rows.json"
    peers.write_text(PEERS)
    arguments = [str(tmp_path / "sets"), "--peers", str(peers), "-o", str(table), "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["results", *arguments, "--deblur", str(deblur)])
    results.main()
    found = {(row["set"], row["model"]): row for row in json.loads(rows.read_text())}
    assert list(found) == [
        *(("Two x2", name) for name in ("bicubic", "light", "nearest")),
        *(("Two x4", name) for name in ("bicubic", "nearest")),
        *(("Two x4, LR as JPEG of quality 40", name) for name in ("bicubic", "nearest")),
        *(("Two x4, LR by second-order degradation", name) for name in ("bicubic", "nearest")),
        *(("Two, made camera shake", name) for name in ("input", "deblur")),
        *(("real, real camera shake", name) for name in ("input", "deblur")),
    ]
    for (photos, name), row in found.items():
        ref = f"{peers}:{name}:{row['scale']}" if name == "nearest" else name
        if photos in ("Two x2", "Two x4"):
            expected = evaluate(load_model(ref, scale=row["scale"]), folder)
            assert row["psnr_y"] == pytest.approx(expected.mean["psnr_y"], abs=1e-4)
        elif row["scale"] == 4:
            assert row["psnr_y"] < found["Two x4", name]["psnr_y"]
        assert f"{row['psnr_y']:.2f}" in table.read_text()
    assert "| *nearest* | 0 |" in table.read_text()
    assert "| Mpx/s | cpu s/Mpx |" in table.read_text()
    assert all(row["cpu_s_per_mpx"] >= 0 for (_, name), row in found.items() if name != "input")
    assert found["Two, made camera shake", "input"]["sharpness_ratio"] < 0.8
    with Image.open(deblur / "sharp" / "one.png") as sharp:
        expected_psnr = np.mean(
            [psnr(luma(_moved(np.asarray(sharp), by)), luma(np.asarray(sharp))) for by in (1, 2)]
        )
    assert found["real, real camera shake", "input"]["psnr_y"] == pytest.approx(expected_psnr, abs=1e-4)
    capsys.readouterr()
    Store(tmp_path / "shipped").publish("light", generator(2), NETWORK)
    results.main()
    assert capsys.readouterr().err.splitlines() == ["Two x2: light"], "the rest was kept"
    again = {(row["set"], row["model"]): row for row in json.loads(rows.read_text())}
    assert list(again) == list(found)
    same = [key for key, row in again.items() if row["psnr_y"] == found[key]["psnr_y"]]
    assert same == [key for key in found if key != ("Two x2", "light")]


def test_maps_of_a_picture_are_computed_once_and_the_longest_unused_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []

    def network(rgb: torch.Tensor) -> dict[str, torch.Tensor]:
        computed.append(float(rgb.mean()))
        return {"conv3_4": 2 * rgb}

    monkeypatch.setattr(results, "REMEMBERED", 2)
    features = results.RememberedFeatures(network)
    photos = [torch.full((1, 3, 4, 4), value) for value in (0.25, 0.5, 0.75)]
    for which in (0, 1, 0, 1, 2, 1, 0):
        assert torch.equal(features(photos[which].clone())["conv3_4"], 2 * photos[which])
    assert computed == [0.25, 0.5, 0.75, 0.25]


def _pairs(folder: Path, photo: Path) -> Path:
    """One sharp photo, and two blurred ones: each is the sharp one moved by some pixels."""
    (folder / "sharp").mkdir(parents=True)
    (folder / "blurred").mkdir()
    with Image.open(photo) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    Image.fromarray(pixels).save(folder / "sharp" / "one.png")
    for by in (1, 2):
        Image.fromarray(_moved(pixels, by)).save(folder / "blurred" / f"one_{by}.png")
    return folder


def _moved(pixels: np.ndarray, by: int) -> np.ndarray:
    return np.roll(pixels, by, axis=1)


def test_a_folder_without_sets_is_an_error_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["results", str(tmp_path), "-o", str(tmp_path / "RESULTS.md")])
    with pytest.raises(SystemExit, match="no folder SET/HR"):
        results.main()
    assert not (tmp_path / "RESULTS.md").exists()
