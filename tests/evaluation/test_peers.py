"""Public networks get their published PSNR from `ray-sr evaluate`: the proof of the metric and the protocol."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sr.evaluation import evaluate
from ray_sr.metrics import luma, psnr
from ray_sr.store import load_model
from ray_sr.upscaling import Engine
from tests.photos import real_photos
from tests.shared_data import shared_folder
from tests.test_cli import run

# Mean PSNR-Y in dB on Set5 x4, LR by MATLAB's bicubic.
PEERS = {"imdn": 32.210, "pan": 32.131, "carn-m": 31.883}


def evaluate_command(name: str) -> list[str]:
    """HR photos are whole; the sides of their LR are those of HR cropped to a multiple of 4."""
    peers, set5 = shared_folder("data/peers/networks.py"), shared_folder("data/benchmarks/Set5")
    folders = ["--hr", str(set5 / "HR"), "--lr", str(set5 / "LRbicx4")]
    return ["evaluate", f"{peers}:{name}:4", *folders, "--json"]


@pytest.mark.parametrize("name", PEERS)
def test_set5_x4(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*evaluate_command(name), capsys=capsys)
    result = json.loads(out)
    assert code == 0
    assert len(result["images"]) == 5
    assert result["precision"] == "float32"
    assert result["mean"]["psnr_y"] == pytest.approx(PEERS[name], abs=0.01)
    assert result["bicubic"]["psnr_y"] == pytest.approx(28.42, abs=0.02)


STATISTICS = """
import torch

class WeighsChannels(torch.nn.Module):
    '''As the contrast attention of IMDN: the whole photo enters every pixel.'''

    def __init__(self):
        super().__init__()
        self.many = torch.nn.Linear(1, 1 << 18)  # looks as if a pixel took a thousand values: tiles become small

    def forward(self, x):
        return x * (0.5 + x.std((2, 3), keepdim=True)) + 0 * self.many(x.mean()[None]).mean()

def load(name, scale):
    return WeighsChannels()
"""


def test_a_callable_that_tells_nothing_of_itself_sees_the_whole_photo(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(STATISTICS)
    photo = real_photos()["rocket"]
    for side in ("hr", "lr"):
        (tmp_path / side).mkdir()
        Image.fromarray(photo).save(tmp_path / side / "rocket.png")
    model = load_model(f"{tmp_path / 'nets.py'}:any:1")
    limited = dataclasses.replace(model.capability, whole_image_norm=False)
    assert Engine(model.module, limited, device="cpu").tile ** 2 < photo.shape[0] * photo.shape[1]

    batch = torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        output = model.module(batch)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()
    expected = psnr(luma(output), luma(photo))
    whole = evaluate(model, tmp_path / "hr", tmp_path / "lr", device="cpu").mean["psnr_y"]
    assert whole == pytest.approx(expected, abs=1e-3)
    model.capability = limited
    tiled = evaluate(model, tmp_path / "hr", tmp_path / "lr", device="cpu").mean["psnr_y"]
    assert abs(tiled - expected) > 0.01
