"""LPIPS, DISTS and BRISQUE with made-up backbones of torchvision's layout, against equations and libraries."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import piq
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from ray_sr.errors import InputError, ModelError, RecipeError, WeightsAbsentError
from ray_sr.evaluation import evaluate
from ray_sr.losses import build_content_losses
from ray_sr.perceptual.quality import (
    BACKBONES,
    DISTS,
    LPIPS,
    LPIPSName,
    load_brisque,
    load_dists,
    load_lpips,
    resolve_quality_weights,
)
from ray_sr.perceptual.vgg import cached_weights
from ray_sr.recipes.losses import LEAST_SIDES, DISTSLossSpec, FeaturesSpec, LPIPSLossSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.store import load_model
from tests.photos import real_photos
from tests.shared_data import shared_folder
from tests.test_cli import run

torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics: pip install 'ray-sr[quality]'")
CHECKPOINTS = "hub/checkpoints"
ALEXNET, VGG16 = "alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"
BRISQUE_FILE = "brisque_svm_weights.pt"


@lru_cache(maxsize=4)
def backbone(name: LPIPSName) -> dict[str, Tensor]:
    """torchvision's tensors with seeded values that keep the variance from layer to layer."""
    with torch.device("meta"):
        stack = torchvision.models.get_model(BACKBONES[name], weights=None).features
    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, meta in stack.state_dict(prefix="features.").items():
        spread = 0.1 if meta.ndim == 1 else (2 / meta[0].numel()) ** 0.5
        state[key] = torch.randn(meta.shape, generator=rng) * spread
    return state


def heads_of(name: str) -> list[Tensor]:
    """Of LPIPS 0.1, as torchmetrics brings them along."""
    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"
    return list(torch.load(file, weights_only=True, map_location="cpu").values())


def dists_heads() -> dict[str, Tensor]:
    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "dists_models" / "weights.pt"
    return dict(torch.load(file, weights_only=True, map_location="cpu"))


def photos(seed: int, height: int = 70, width: int = 91) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and a proxy that refuses every connection."""
    folder = tmp_path / "torch"
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (folder / CHECKPOINTS).mkdir(parents=True)
    return folder / CHECKPOINTS


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    folder = tmp_path / "hr"
    folder.mkdir()
    Image.fromarray(real_photos()["coffee"][100:196, 200:320]).save(folder / "coffee.png")
    return folder


# --------------------------------------------------------------------------------------------- LPIPS


def by_equation(name: LPIPSName, sr: Tensor, hr: Tensor) -> np.ndarray:
    """The paper's equation 1 on torchvision's own layers, with its scaling of [-1, 1], in float64."""
    taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}[name]
    with torch.device("meta"):
        stack = torchvision.models.get_model(BACKBONES[name], weights=None).features
    stack = stack.to_empty(device="cpu").eval()
    stack.load_state_dict({key.removeprefix("features."): value for key, value in backbone(name).items()})
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def unit(photo: Tensor) -> list[np.ndarray]:
        x, found = (2 * photo - 1 - shift) / scale, []
        for place, layer in enumerate(stack):
            x = layer(x)
            if place in taps:
                values = x.detach().numpy().astype(np.float64)
                found.append(values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-10))
        return found

    total = np.zeros(len(sr))
    for one, other, head in zip(unit(sr), unit(hr), heads_of(name), strict=True):
        total += ((one - other) ** 2 * head.numpy()).sum(axis=1).mean(axis=(1, 2))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_lpips_equals_the_papers_equation_with_the_published_heads(name: LPIPSName) -> None:
    lpips = LPIPS(name, backbone(name))
    sr, hr = photos(4), photos(5)
    found = lpips(sr, hr)
    np.testing.assert_allclose(found.numpy(), by_equation(name, sr, hr), rtol=1e-4)
    torch.testing.assert_close(found, lpips(hr, sr))
    torch.testing.assert_close(found[:1], lpips(sr[:1], hr[:1]))
    assert lpips(sr, sr).tolist() == [0, 0]
    least = LEAST_SIDES[name]
    assert torch.isfinite(lpips(photos(1, least, 60), photos(2, least, 60))).all()
    with pytest.raises(InputError, match=f"60x{least - 1} is too small for LPIPS"):
        lpips(photos(1, least - 1, 60), photos(2, least - 1, 60))


def test_lpips_is_frozen_and_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    lpips = LPIPS("alex", backbone("alex"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_the_authors_example() -> None:
    """What their example prints with version 0.1 and AlexNet (richzhang/PerceptualSimilarity, issue 120)."""
    examples = shared_folder("data/weights/lpips_v0.1/examples")
    if cached_weights("alexnet") is None:
        pytest.skip("needs torchvision's AlexNet in torch's cache: ray-sr evaluate --lpips alex downloads it")
    lpips = load_lpips("alex")
    ref, first, second = (_png(examples / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    assert float(lpips(ref, first)) == pytest.approx(0.722, abs=1e-3)
    assert float(lpips(ref, second)) == pytest.approx(0.138, abs=1e-3)


def _png(path: Path) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


# --------------------------------------------------------------------------------------------- DISTS


@pytest.mark.slow
def test_dists_by_piq_equals_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import dists as theirs

    stack = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    stack.load_state_dict({key.removeprefix("features."): value for key, value in backbone("vgg").items()})

    class Network:
        features = stack

    monkeypatch.setattr(theirs, "vgg16", lambda weights: Network())
    sr, hr = photos(6), photos(7)
    ours = DISTS(backbone("vgg"), dists_heads())
    torch.testing.assert_close(ours(sr, hr), theirs.DISTSNetwork()(sr, hr).clone(), rtol=1e-4, atol=1e-5)
    assert ours(sr, sr).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert (ours(sr, hr) > 0.01).all()
    with pytest.raises(InputError, match="60x15 is too small for DISTS"):
        ours(photos(1, 15, 60), photos(2, 15, 60))


# ---------------------------------------------------------------------------------------- as losses


@pytest.mark.slow
def test_both_are_losses_with_gradients_that_lead_to_the_photo(offline: Path) -> None:
    torch.save(backbone("vgg"), offline / VGG16)
    specs = [LPIPSLossSpec(), DISTSLossSpec(weights=str(offline / VGG16))]
    sr, hr = photos(8, 48, 48), photos(9, 48, 48)
    terms, networks = build_content_losses(specs, FeaturesSpec()), (load_lpips("vgg"), load_dists())
    for term, network in zip(terms, networks, strict=True):
        moved = sr.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):  # which they do not take part in
            loss = term(moved, hr)
        assert float(loss.detach()) == pytest.approx(float(network(sr, hr).mean()), rel=1e-4)
        loss.backward()
        assert moved.grad is not None
        step = 1e-3 / float(moved.grad.abs().max())
        assert float(term(sr - step * moved.grad, hr)) < float(loss.detach())


def test_crops_that_are_too_small_and_weights_that_are_absent_are_refused_before_training(offline: Path) -> None:
    text = "name: a\nscale: 2\ndata: {crop: 28}\npretrain: {steps: 1, losses: [{kind: lpips, network: alex}]}\n"
    with pytest.raises(RecipeError, match=r"lpips \(alex\) needs data.crop 31 or more, not 28"):
        parse_recipe(text)
    for spec in (LPIPSLossSpec(network="alex"), DISTSLossSpec()):
        with pytest.raises(WeightsAbsentError, match="connected machine"):
            resolve_quality_weights([spec])


# ----------------------------------------------------------------------------------------- the weights


def test_another_networks_backbone_is_refused(offline: Path) -> None:
    torch.save(backbone("alex"), offline / "mine.pth")
    torch.save(backbone("squeeze"), offline / ALEXNET)
    with pytest.raises(ModelError, match="LPIPS's alexnet"):
        load_lpips("alex")
    with pytest.raises(ModelError, match="DISTS's vgg16"):
        load_dists(str(offline / "mine.pth"))
    assert load_lpips("alex", str(offline / "mine.pth")).name == "alex"
    with pytest.raises(InputError, match=r"nowhere\.pth: no such file"):
        load_lpips("alex", "nowhere.pth")


def test_absent_weights_are_named_and_nothing_is_left_behind(offline: Path) -> None:
    for load, name in ((load_lpips, ALEXNET), (load_dists, VGG16), (load_brisque, BRISQUE_FILE)):
        with pytest.raises(WeightsAbsentError) as caught:
            load()  # type: ignore[operator]
        assert name in str(caught.value)
        assert "connected machine" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not [path for path in offline.rglob("*") if path.is_file()]


# -------------------------------------------------------------------------------------------- BRISQUE


@pytest.fixture
def support_vectors(offline: Path) -> None:
    """Made-up ones in the file's layout: coefficients, then vectors of 36 features."""
    rng = torch.Generator().manual_seed(5)
    made = torch.randn(40, generator=rng), torch.rand(40, 36, generator=rng) * 2 - 1
    torch.save(made, offline / BRISQUE_FILE)


@pytest.mark.usefixtures("support_vectors")
def test_brisque_is_piqs_with_the_files_support_vectors() -> None:
    photo = torch.from_numpy(real_photos()["coffee"][100:196, 200:320]).permute(2, 0, 1)[None].float() / 255
    found = load_brisque()(photo)
    assert found == pytest.approx(float(piq.brisque(photo)))
    with pytest.raises(InputError, match="BRISQUE cannot judge this photo"):
        load_brisque()(torch.full((1, 3, 40, 40), 0.5))


# ---------------------------------------------------------------------------------------- in a table


@pytest.mark.slow
@pytest.mark.usefixtures("support_vectors")
def test_evaluate_adds_columns_and_says_what_they_are(hr: Path) -> None:
    Image.fromarray(real_photos()["coffee"][100:130, 200:260]).save(hr / "tiny.png")
    lpips, dists = LPIPS("alex", backbone("alex")), DISTS(backbone("vgg"), dists_heads())
    found = evaluate(load_model("bicubic", scale=2), hr, lpips=lpips, dists=dists, brisque=load_brisque())
    for column in ("lpips_alex", "dists", "brisque"):
        assert found.mean[column] == pytest.approx(found.bicubic[column], rel=0.1), column
    assert "LPIPS: version 0.1, alex" in found.protocol
    assert "DISTS: " in found.protocol
    heading = found.table().split("sharp/HR")[1]
    assert all(name in heading for name in ("LPIPS", "DISTS", "BRISQUE"))
    assert [(photo.name, "31x31" in photo.reason) for photo in found.left_out] == [("tiny.png", True)]


def test_the_command_reports_what_can_be_had_and_says_what_not_in_one_line(
    offline: Path, hr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(backbone("alex") | {"classifier.6.bias": torch.zeros(1000)}, offline / "mine.pth")
    options = ("evaluate", "bicubic", "--scale", "2", "--hr", str(hr), "--json")
    wanted = ("--lpips", f"alex={offline / 'mine.pth'}", "--dists", "auto", "--brisque", "auto")
    code, out, err = run(*options, *wanted, capsys=capsys)
    assert code == 0
    assert json.loads(out)["mean"]["lpips_alex"] > 0
    assert not {"dists", "brisque"} & json.loads(out)["mean"].keys()
    said = [line for line in err.splitlines() if "left out" in line]
    assert [line.split(" is left out: ")[0] for line in said] == ["DISTS", "BRISQUE"]


@pytest.mark.parametrize(("wrong", "code"), [("alex=absent.pth", 3), ("alex=heads.pth", 5), ("net", 2)])
def test_the_command_refuses_wrong_weights(
    wrong: str, code: int, hr: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hr)
    (hr / "heads.pth").write_bytes(b"nothing")
    options = ("evaluate", "bicubic", "--scale", "2", "--hr", str(hr), "--lpips")
    assert run(*options, wrong, capsys=capsys)[0] == code
