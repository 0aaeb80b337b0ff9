"""Photographs without HR: BRISQUE of what a model makes of them, from Python and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import piq
import pytest
import torch
from PIL import Image

from ray_sr.errors import InputError, ModelError
from ray_sr.evaluation import evaluate_alone, no_reference
from ray_sr.images.resample import upscale_array
from ray_sr.metrics import sharpness
from ray_sr.perceptual.quality import load_brisque
from tests.evaluation.test_evaluate import crop, save, unchanged, untrained
from tests.perceptual.test_quality import BRISQUE_FILE, offline, support_vectors
from tests.test_cli import run

__all__ = ["offline", "support_vectors"]  # fixtures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    save(tmp_path / "photos" / "coffee.png", crop("coffee")[:60, :50])
    save(tmp_path / "photos" / "trip" / "gray.jpg", crop("chelsea")[:48, :64, 1])
    return tmp_path / "photos"


def by_piq(pixels: np.ndarray) -> float:
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    return float(piq.brisque(torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255))


@pytest.mark.usefixtures("support_vectors")
def test_output_and_bicubic_are_judged_alone(photos: Path) -> None:
    model = untrained(2)
    found = evaluate_alone(model, photos, load_brisque())
    assert [image.name for image in found.images] == ["coffee.png", "trip/gray.jpg"]
    for image in found.images:
        pixels = np.asarray(Image.open(photos / image.name))
        enlarged = upscale_array(pixels, 2)
        assert image.baseline == pytest.approx({"brisque": by_piq(enlarged), "sharpness": sharpness(enlarged)})
        assert image.figures["brisque"] != image.baseline["brisque"]
    assert found.mean["brisque"] == pytest.approx(np.mean([image.figures["brisque"] for image in found.images]))
    lines = found.table().splitlines()
    assert lines[1].startswith("no HR: each output is judged alone")
    assert lines[-1].startswith("mean sharpness: bicubic ")
    assert found.columns == ["sharpness", "brisque"]


@pytest.mark.usefixtures("support_vectors")
def test_photos_as_they_are_one_file_and_the_middle_of_large_ones(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_reference, "LARGEST", 40)
    (image,) = evaluate_alone(unchanged(), photos / "coffee.png", load_brisque()).images
    assert image.figures == image.baseline
    assert image.figures["brisque"] == pytest.approx(by_piq(crop("coffee")[10:50, 5:45]))


@pytest.mark.usefixtures("support_vectors")
def test_what_cannot_be_judged_is_named_and_pictures_show_the_two(photos: Path, tmp_path: Path) -> None:
    save(photos / "flat.png", np.full((40, 40, 3), 128, np.uint8))
    (photos / "broken.png").write_bytes(b"nothing")
    found = evaluate_alone(untrained(2), photos, load_brisque(), pictures=tmp_path / "drawn")
    assert [photo.name for photo in found.left_out] == ["broken.png", "flat.png"]
    assert "BRISQUE cannot judge this photo" in found.left_out[1].reason
    assert sorted(found.pictures) == ["coffee.png", "trip/gray.jpg"]
    assert Image.open(tmp_path / "drawn/trip/gray.png").width == pytest.approx(690, abs=20)
    with pytest.raises(InputError, match=r"no photo could be judged; the first of 1: flat\.png"):
        evaluate_alone(untrained(2), photos / "flat.png", load_brisque())
    with pytest.raises(ModelError, match="enlarges x2, not x4"):
        evaluate_alone(untrained(2), photos, load_brisque(), scale=4)


def test_the_command_takes_photos_without_hr(
    photos: Path, offline: Path, capsys: pytest.CaptureFixture[str], support_vectors: object
) -> None:
    vectors = (offline / BRISQUE_FILE).rename(offline / "mine.pt")
    options = ("evaluate", "bicubic", "--scale", "2", "--lr", str(photos))
    code, out, _ = run(*options, "--brisque", str(vectors), "--json", capsys=capsys)
    assert code == 0
    found = json.loads(out)
    assert found["mean"]["brisque"] == pytest.approx(found["bicubic"]["brisque"], rel=0.1)
    assert set(found["mean"]) == {"brisque", "sharpness"}
    for wrong, expected, said in (
        ((), 2, "--brisque auto"),
        (("--brisque", "auto", "--dists", "auto"), 2, "--dists compares with HR"),
        (("--brisque", "auto"), 3, "connected machine"),
        (("--brisque", "absent.pt"), 3, "absent.pt: no such file"),
        (("--brisque", str(photos / "coffee.png")), 5, "not the support vectors of BRISQUE"),
    ):
        code, out, err = run(*options, *wrong, capsys=capsys)
        assert code == expected, err
        assert said in err
        assert not out
