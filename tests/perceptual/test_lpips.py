"""LPIPS against torchmetrics and NumPy with the same made-up backbones; weights good, bad and absent."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ray_sr.errors import InputError, ModelError, WeightsAbsentError
from ray_sr.evaluation import evaluate
from ray_sr.perceptual.lpips import LPIPS, VARIANTS, LPIPSName, load_lpips
from ray_sr.perceptual.vgg import cached_weights
from ray_sr.store import load_model
from tests.photos import real_photos
from tests.shared_data import shared_folder
from tests.test_cli import run

ALEXNET_CACHE = "hub/checkpoints/alexnet-owt-7be5be79.pth"


def backbone(name: LPIPSName) -> dict[str, Tensor]:
    """torchvision's tensors with seeded values that keep the variance from layer to layer."""
    with torch.device("meta"):
        stack = torchvision.models.get_model(VARIANTS[name].model, weights=None).features
    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, meta in stack.state_dict(prefix="features.").items():
        spread = 0.1 if meta.ndim == 1 else (2 / meta[0].numel()) ** 0.5
        state[key] = torch.randn(meta.shape, generator=rng) * spread
    return state


def synthetic_heads() -> list[Tensor]:
    """For AlexNet; as the published ones are: not negative, some of them 0."""
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(1, count, 1, 1, generator=rng).relu() for count in (64, 192, 384, 256, 256)]


def photos(seed: int, height: int = 70, width: int = 91) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def published_heads(name: str = "alex") -> Path:
    """The heads that torchmetrics brings along."""
    torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics: pip install ray-sr[dev]")
    return Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and a proxy that refuses every connection."""
    folder = tmp_path / "torch"
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return folder


@pytest.fixture
def with_alexnet(offline: Path) -> Path:
    """The same with a made-up AlexNet in the cache, as torchvision's file has it."""
    path = offline / ALEXNET_CACHE
    path.parent.mkdir(parents=True)
    torch.save(backbone("alex") | {"classifier.6.bias": torch.zeros(1000)}, path)
    return offline


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    folder = tmp_path / "hr"
    folder.mkdir()
    Image.fromarray(real_photos()["coffee"][100:196, 200:320]).save(folder / "coffee.png")
    return folder


# ------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_torchmetrics_with_the_published_heads(name: LPIPSName) -> None:
    file = published_heads(name)
    from torchmetrics.functional.image.lpips import _LPIPS

    weights = backbone(name)
    theirs = _LPIPS(net=name, pnet_rand=True, pretrained=True)
    theirs.net.load_state_dict(dict(zip(theirs.net.state_dict(), weights.values(), strict=True)))
    heads = torch.load(file, weights_only=True, map_location="cpu")
    ours = LPIPS(name, weights, list(heads.values()))
    with torch.inference_mode():
        expected = theirs(photos(2), photos(3), normalize=True).flatten()
    torch.testing.assert_close(ours(photos(2), photos(3)), expected, rtol=1e-5, atol=1e-6)
    assert expected.min() > 0.01


def by_hand(weights: Mapping[str, Tensor], heads: list[Tensor], sr: Tensor, hr: Tensor) -> np.ndarray:
    """AlexNet's five layers and the paper's equation 1 on [-1, 1], in float64 NumPy but for convolutions."""

    def features(photo: Tensor) -> list[np.ndarray]:
        shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
        x, found = (2 * photo - 1 - shift) / scale, []
        for place, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if place in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            kernel, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
            x = F.conv2d(x, kernel, bias, stride, padding).relu()
            found.append(x.numpy().astype(np.float64))
        return found

    total = np.zeros(len(sr))
    for one, other, head in zip(features(sr), features(hr), heads, strict=True):
        unit = [x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-10) for x in (one, other)]
        weighted = (unit[0] - unit[1]) ** 2 * head.numpy()
        total += weighted.sum(axis=1).mean(axis=(1, 2))
    return total


def test_equals_the_papers_equation() -> None:
    weights, heads = backbone("alex"), synthetic_heads()
    ours = LPIPS("alex", weights, heads)(photos(4), photos(5))
    np.testing.assert_allclose(ours.numpy(), by_hand(weights, heads, photos(4), photos(5)), rtol=1e-5)


def test_equal_photos_and_dead_features_have_no_distance() -> None:
    lpips = LPIPS("alex", backbone("alex"), synthetic_heads())
    assert lpips(photos(6), photos(6)).tolist() == [0, 0]
    dead = {key: torch.zeros_like(tensor) for key, tensor in backbone("alex").items()}
    assert LPIPS("alex", dead, synthetic_heads())(photos(6), photos(7)).tolist() == [0, 0]


def test_each_photo_has_its_own_distance_whichever_is_named_first() -> None:
    lpips = LPIPS("alex", backbone("alex"), synthetic_heads())
    sr, hr = photos(8), photos(9)
    together = lpips(sr, hr)
    torch.testing.assert_close(together, torch.cat([lpips(sr[:1], hr[:1]), lpips(sr[1:], hr[1:])]))
    torch.testing.assert_close(together, lpips(hr, sr))
    assert together[0] != together[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_smallest_photo_works_and_a_smaller_one_is_named(name: LPIPSName) -> None:
    heads = torch.load(published_heads(name), weights_only=True, map_location="cpu")
    lpips = LPIPS(name, backbone(name), list(heads.values()))
    least = VARIANTS[name].smallest
    assert torch.isfinite(lpips(photos(1, least, 60), photos(2, least, 60))).all()
    with pytest.raises(InputError, match=f"60x{least - 1} is too small for LPIPS"):
        lpips(photos(1, least - 1, 60), photos(2, least - 1, 60))


def test_is_frozen_and_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    lpips = LPIPS("alex", backbone("alex"), synthetic_heads())
    assert torch.equal(torch.get_rng_state(), before)
    assert not lpips.training
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_the_authors_example() -> None:
    """What their example prints with version 0.1 and AlexNet (richzhang/PerceptualSimilarity, issue 120)."""
    examples = shared_folder("data/weights/lpips_v0.1/examples")
    if cached_weights("alexnet") is None:
        pytest.skip("needs torchvision's AlexNet in torch's cache: ray-sr evaluate --lpips alex downloads it")
    lpips = load_lpips(str(shared_folder("data/weights/lpips_v0.1/alex.pth")))
    ref, first, second = (_png(examples / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    assert float(lpips(ref, first)) == pytest.approx(0.722, abs=1e-3)
    assert float(lpips(ref, second)) == pytest.approx(0.138, abs=1e-3)


def _png(path: Path) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


# ----------------------------------------------------------------------------------------- the weights


def test_heads_are_known_by_their_content_and_found_by_name(with_alexnet: Path, tmp_path: Path) -> None:
    file = published_heads()
    (tmp_path / "any name.bin").write_bytes(file.read_bytes())
    (with_alexnet / "hub" / "checkpoints" / "lpips_v0.1_alex-df73285e35b2.pth").write_bytes(file.read_bytes())
    heads = torch.load(file, weights_only=True, map_location="cpu")
    expected = LPIPS("alex", backbone("alex"), list(heads.values()))(photos(1), photos(2))
    for choice in (str(file), str(tmp_path / "any name.bin"), "alex"):
        assert torch.equal(load_lpips(choice)(photos(1), photos(2)), expected)


class _Executes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_other_heads_are_refused_because_they_would_not_be_lpips(with_alexnet: Path, tmp_path: Path) -> None:
    heads = torch.load(published_heads(), weights_only=True, map_location="cpu")
    torch.save({key: tensor * 1.001 for key, tensor in heads.items()}, tmp_path / "trained.pth")
    (tmp_path / "cut.pth").write_bytes(published_heads().read_bytes()[:-1])
    (tmp_path / "code.pth").write_bytes(pickle.dumps(_Executes(tmp_path / "executed"), protocol=2))
    for name in ("trained", "cut", "code"):
        with pytest.raises(ModelError, match=rf"{name}\.pth is none of the linear heads of LPIPS 0\.1"):
            load_lpips(str(tmp_path / f"{name}.pth"))
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError, match=r"nowhere\.pth: no such file"):
        load_lpips(str(tmp_path / "nowhere.pth"))


def test_another_networks_backbone_is_refused(with_alexnet: Path) -> None:
    torch.save(backbone("vgg"), with_alexnet / ALEXNET_CACHE)
    with pytest.raises(ModelError, match=r"0\.weight is 64x3x3x3 in the file and 64x3x11x11 in the network"):
        load_lpips(str(published_heads()))


def test_absent_weights_are_named_and_nothing_is_left_behind(offline: Path) -> None:
    for choice, name in (("alex", "lpips_v0.1_alex"), (str(published_heads()), "alexnet-owt-7be5be79.pth")):
        with pytest.raises(WeightsAbsentError) as caught:
            load_lpips(choice)
        assert name in str(caught.value)
        assert "connected machine" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not [path for path in offline.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------- in a table


def test_evaluate_adds_a_column_and_says_which_lpips(hr: Path) -> None:
    lpips = LPIPS("alex", backbone("alex"), synthetic_heads())
    found = evaluate(load_model("bicubic", scale=2), hr, lpips=lpips)
    assert 0 < found.mean["lpips_alex"] == pytest.approx(found.bicubic["lpips_alex"], rel=0.1)
    assert "LPIPS: version 0.1, alex" in found.protocol
    assert "LPIPS" in found.table().split("sharp/HR")[1].splitlines()[0]


def test_photos_too_small_for_the_backbone_are_left_out(hr: Path) -> None:
    Image.fromarray(real_photos()["coffee"][100:130, 200:260]).save(hr / "tiny.png")
    lpips = LPIPS("alex", backbone("alex"), synthetic_heads())
    found = evaluate(load_model("bicubic", scale=2), hr, lpips=lpips)
    assert [(photo.name, "31x31" in photo.reason) for photo in found.left_out] == [("tiny.png", True)]
    assert [image.name for image in found.images] == ["coffee.png"]


def test_the_command_reports_lpips(with_alexnet: Path, hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = str(published_heads())
    options = ("evaluate", "bicubic", "--scale", "2", "--hr", str(hr), "--lpips", heads, "--json")
    code, out, _ = run(*options, capsys=capsys)
    expected = evaluate(load_model("bicubic", scale=2), hr, lpips=load_lpips(heads))
    assert code == 0
    assert json.loads(out)["mean"]["lpips_alex"] == pytest.approx(expected.mean["lpips_alex"])


def test_the_command_without_the_backbone_says_so_in_one_line_and_goes_on(
    offline: Path, hr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("evaluate", "bicubic", "--scale", "2", "--hr", str(hr), "--json")
    code, out, err = run(*options, "--lpips", "alex", capsys=capsys)
    said = [line for line in err.splitlines() if "LPIPS" in line]
    assert code == 0
    assert len(said) == 1
    assert said[0].startswith("LPIPS is left out: ")
    mean = json.loads(out)["mean"]
    assert mean["psnr_y"] > 20
    assert not [key for key in mean if "lpips" in key]


def test_the_command_refuses_wrong_heads(hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "heads.pth").write_bytes(b"nothing")
    options = ("evaluate", "bicubic", "--scale", "2", "--hr", str(hr), "--lpips")
    assert run(*options, str(tmp_path / "heads.pth"), capsys=capsys)[0] == 5
    assert run(*options, str(tmp_path / "absent.pth"), capsys=capsys)[0] == 3
