"""Blending two models of one network (`upscale --denoise`), and what is said to photos stored as poor JPEG."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sr.errors import ModelError
from ray_sr.images.jpeg_quality import jpeg_quality
from ray_sr.recipes.networks import MSRResNetSpec, NetworkSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.training import PretrainSpec
from ray_sr.store import Model, Store
from ray_sr.store.blending import blended
from tests.small_models import generator, output
from tests.test_cli import run

NETWORK = NetworkSpec(scale=2, generator=MSRResNetSpec(blocks=1, channels=4))


def model(name: str, seed: int, network: NetworkSpec = NETWORK) -> Model:
    module = generator(seed, network)
    return Model(name, f"{seed:012d}", network, module, module.capability)


def test_every_weight_lies_between_the_two() -> None:
    plain, cleaning = model("plain", 1), model("cleaning", 2)
    middle = blended(plain, cleaning, 0.3)
    for key, value in middle.module.state_dict().items():
        expected = 0.7 * plain.module.state_dict()[key] + 0.3 * cleaning.module.state_dict()[key]
        torch.testing.assert_close(value, expected)
    assert middle.name == "plain+0.3*cleaning"
    assert torch.equal(output(blended(plain, cleaning, 0).module), output(plain.module))
    assert torch.equal(output(blended(plain, cleaning, 1).module), output(cleaning.module))


@pytest.mark.parametrize("spec", [MSRResNetSpec(blocks=2, channels=4), None])
def test_different_networks_are_refused_with_their_names(spec: MSRResNetSpec | None) -> None:
    other = model("other", 2, NetworkSpec(scale=2, generator=spec or MSRResNetSpec(blocks=1, channels=4)))
    theirs = r"msrresnet x2 \(blocks 2, channels 4, upsampling progressive\)"
    if spec is None:
        other, theirs = Model("other", "1", None, other.module, other.capability), "a foreign network"
    with pytest.raises(ModelError, match=f"plain is msrresnet x2 .*, other is {theirs}"):
        blended(model("plain", 1), other, 0.5)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model for undamaged photos, one of its network that cleans, and one of another network."""
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path / "store"))
    store = Store()
    for seed, (name, steps) in enumerate(
        {"plain": [{"kind": "downscale"}], "cleaning": [{"kind": "downscale"}, {"kind": "jpeg"}]}.items()
    ):
        recipe = Recipe.model_validate(
            {
                "name": name,
                "scale": 2,
                "generator": NETWORK.generator,
                "degradation": steps,
                "pretrain": PretrainSpec(steps=1),
            }
        )
        store.publish(name, generator(seed, NETWORK), NETWORK, recipe=recipe)
    other = NetworkSpec(scale=2, generator=MSRResNetSpec(blocks=2, channels=4))
    store.publish("deeper", generator(5, other), other)
    return store


def photo(path: Path, **options: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def test_denoise_blends_the_models_named(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = photo(tmp_path / "a.png"), tmp_path / "b.png"
    chosen = ["-n", "plain", "--denoise-model", "cleaning", "--json", "--precision", "float32"]
    code, out, _ = run("upscale", source, "-o", str(target), *chosen, "--denoise", "0.25", capsys=capsys)
    assert code == 0
    assert json.loads(out)["model"].startswith("plain+0.25*cleaning@")
    middle = blended(store.load("plain"), store.load("cleaning"), 0.25)
    batch = torch.from_numpy(np.asarray(Image.open(source)).copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = middle.module(batch)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(np.asarray(Image.open(target)) - expected).max() < 0.6


def test_denoise_refuses_another_network(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = photo(tmp_path / "a.png"), tmp_path / "b.png"
    chosen = ["-n", "plain", "--denoise-model", "deeper", "--denoise", "0.5"]
    code, _, err = run("upscale", source, "-o", str(target), *chosen, capsys=capsys)
    assert code == 5
    assert "plain is msrresnet x2 (blocks 1" in err
    assert "deeper is msrresnet x2 (blocks 2" in err
    assert not target.exists()


@pytest.mark.parametrize("share", ["1.1", "-0.1", "much"])
def test_shares_beyond_the_range_are_refused(
    tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("upscale", photo(tmp_path / "a.png"), "--denoise", share, capsys=capsys)
    assert code == 2
    assert "--denoise" in err


def test_poor_jpegs_are_told_once_of_the_better_model(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(folder / "a.png")
    photo(folder / "b.jpg", quality=95)
    photo(folder / "c.jpg", quality=60)
    photo(folder / "d.jpg", quality=50)
    arguments = ["upscale", str(folder), "-o", str(tmp_path / "out"), "--overwrite"]
    code, _, err = run(*arguments, "-n", "plain", capsys=capsys)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "quality" in line]
    said = "c.jpg: a JPEG of quality 60, and plain is for undamaged photos: -n cleaning cleans them"
    assert line.endswith(said)
    for other in (["-n", "cleaning"], ["-n", "deeper"], ["-n", "plain", "--json"], ["-n", "plain", "--dry-run"]):
        assert "quality" not in run(*arguments, *other, capsys=capsys)[2]


@pytest.mark.parametrize("quality", [1, 5, 25, 50, 75, 89, 90, 100])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quality_is_read_from_the_tables(quality: int, mode: str) -> None:
    buffer = BytesIO()
    Image.new(mode, (17, 9)).save(buffer, "JPEG", quality=quality, exif=b"Exif\0\0" + bytes(3000))
    assert jpeg_quality(buffer.getvalue()) == pytest.approx(quality, abs=1 if quality > 20 else 11)


def test_what_is_no_jpeg_has_no_quality() -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    for data in (b"", b"\xff", b"\xff\xd8", b"\x89PNG" + bytes(50), whole[:20], b"\xff\xd8" + b"\xff" * 40):
        assert jpeg_quality(data) is None
    for end in range(len(whole)):  # cut anywhere: an answer or none, never an error
        assert jpeg_quality(whole[:end]) in (None, 75)
