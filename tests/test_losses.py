"""Every content loss against its formula or another library; gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ray_sr.errors import InputError
from ray_sr.losses import ContentLoss, build_content_losses, soft_histogram
from ray_sr.recipes.losses import (
    ColourLossSpec,
    FeaturesSpec,
    LossSpec,
    PerceptualLossSpec,
    PixelLossSpec,
    TotalVariationSpec,
)
from tests.perceptual.test_vgg import photos, synthetic_vgg

RANDOM = PerceptualLossSpec(network="random", layers={"conv2_2": 0.5, "conv5_4": 1.0}, activation="before")
ALL_CONTENT: list[LossSpec] = [
    PixelLossSpec(kind="l1"),
    PixelLossSpec(kind="mse"),
    PixelLossSpec(kind="charbonnier"),
    RANDOM,
    ColourLossSpec(kind="mean_colour"),
    ColourLossSpec(kind="histogram"),
    ColourLossSpec(kind="chroma"),
    TotalVariationSpec(),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Modules that a test builds start from the same weights every time."""
    torch.manual_seed(0)


def one(spec: LossSpec, weights: Path | None = None) -> ContentLoss:
    (term,) = build_content_losses([spec], FeaturesSpec(weights=str(weights) if weights else None))
    return term


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- content losses


@pytest.mark.parametrize("spec", ALL_CONTENT, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_content_loss_reaches_the_generator(spec: LossSpec, dtype: torch.dtype) -> None:
    sr = photos(1).to(dtype).requires_grad_()
    loss = one(spec)(sr, photos(2))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() > 0
    loss.backward()
    assert sr.grad is not None
    assert sr.grad.isfinite().all()
    assert sr.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()


@pytest.mark.parametrize("spec", [s for s in ALL_CONTENT if s.kind not in ("tv", "charbonnier")], ids=str)
def test_equal_photos_have_no_loss(spec: LossSpec) -> None:
    assert float(one(spec)(photos(1), photos(1))) == 0


def test_pixel_losses_follow_their_formulas() -> None:
    sr, hr = photos(1), photos(2)
    d = np.subtract(*arrays(sr, hr))
    expected = {
        "l1": np.abs(d).mean(),
        "mse": (d**2).mean(),
        "charbonnier": np.sqrt(d**2 + 0.1**2).mean(),
    }
    for kind, value in expected.items():
        assert float(one(PixelLossSpec(kind=kind, eps=0.1))(sr, hr)) == pytest.approx(value, rel=1e-5)


def test_charbonnier_has_a_gradient_of_zero_at_zero() -> None:
    sr = photos(1).requires_grad_()
    one(PixelLossSpec(kind="charbonnier"))(sr, photos(1)).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() == 0


def test_mean_colour_compares_each_photo() -> None:
    sr = torch.zeros(2, 3, 8, 8)
    hr = sr.clone()
    hr[0, 0], hr[1, 0] = 0.3, -0.3  # the batch's mean colours agree, the photos' do not
    assert float(one(ColourLossSpec())(sr, hr)) == pytest.approx(0.1, rel=1e-6)
    assert float(one(ColourLossSpec())(hr, hr.flip(3).roll(2, dims=2))) == pytest.approx(0, abs=1e-7)


def test_chroma_is_that_of_jpeg_and_blind_to_brightness() -> None:
    chroma = one(ColourLossSpec(kind="chroma"))
    sr, hr = photos(5, side=16), photos(6, side=16)
    theirs = []
    for photo in (sr, hr):
        levels = photo.mul(255).round().byte()
        theirs.append(np.asarray(Image.fromarray(levels[0].permute(1, 2, 0).numpy()).convert("YCbCr"), dtype=float))
    expected = np.abs(theirs[0] - theirs[1])[..., 1:].mean() / 255
    assert float(chroma(sr[:1], hr[:1])) == pytest.approx(expected, abs=1 / 255)
    assert float(chroma(hr + torch.rand(hr.shape[0], 1, 16, 16), hr)) == pytest.approx(0, abs=1e-6)


def test_total_variation_equals_piqs_and_ignores_the_target() -> None:
    piq = pytest.importorskip("piq")
    sr = photos(3, side=24)
    expected = piq.total_variation(sr, norm_type="l1") / (3 * 24 * 23)
    torch.testing.assert_close(one(TotalVariationSpec())(sr, photos(4, side=24)), expected)
    wide = torch.arange(5.0).expand(1, 3, 7, 5)
    assert float(one(TotalVariationSpec())(wide, wide)) == 1


# ------------------------------------------------------------------------------------------ histogram


def dense_histogram(values: np.ndarray, bins: int) -> np.ndarray:
    """Triangular kernel of every value at every centre, N×C×bins."""
    flat = np.clip(values.reshape(*values.shape[:2], -1, 1), 0, 1)
    return np.maximum(0, 1 - np.abs(flat * (bins - 1) - np.arange(bins))).mean(axis=2)


@pytest.mark.parametrize("bins", [2, 7, 32])
def test_soft_histogram_equals_the_dense_formula(bins: int) -> None:
    values = photos(5, side=12) * 1.4 - 0.2  # also outside [0, 1]
    histogram = soft_histogram(values, bins)
    assert histogram.numpy() == pytest.approx(dense_histogram(arrays(values)[0], bins), abs=1e-5)
    torch.testing.assert_close(histogram.sum(dim=2), torch.ones(2, 3))


def test_histogram_distance_is_l1_of_histograms() -> None:
    sr, hr = photos(6), photos(7) ** 2
    first, second = (dense_histogram(x, 16) for x in arrays(sr, hr))
    expected = np.abs(first - second).sum(axis=2).mean()
    assert float(one(ColourLossSpec(kind="histogram", bins=16))(sr, hr)) == pytest.approx(expected, rel=1e-4)
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert float(one(ColourLossSpec(kind="histogram"))(black, white)) == pytest.approx(2)


def test_soft_histogram_has_the_right_gradient() -> None:
    values = (photos(8, side=3).double() * 0.9 + 0.05).requires_grad_()
    mixing = torch.randn(5, 1, generator=seeded(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_histogram(x, 5) @ mixing, values, eps=1e-7, atol=1e-5)


# ----------------------------------------------------------------------------------------- perceptual


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    for name in ("vgg16", "vgg19"):
        torch.save(synthetic_vgg(name).state_dict(prefix="features."), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in ("vgg16", "vgg19")}


@pytest.mark.parametrize(
    ("network", "layer", "activation", "distance", "module", "channels"),
    [
        ("vgg19", "conv5_4", "after", "mse", "35", 512),
        ("vgg19", "conv5_4", "before", "l1", "34", 512),
        ("vgg16", "conv3_3", "after", "mse", "15", 256),
    ],
)
def test_perceptual_loss_is_piqs_content_loss_per_channel(
    vgg_files: dict[str, Path],
    network: str,
    layer: str,
    activation: str,
    distance: str,
    module: str,
    channels: int,
) -> None:
    """piq divides by W·H only, as the SRGAN paper writes it; this project's mean is also over channels."""
    piq = pytest.importorskip("piq")
    spec = PerceptualLossSpec.model_validate(
        {"network": network, "layers": {layer: 1.0}, "activation": activation, "distance": distance}
    )
    stack = synthetic_vgg(network)[: int(module) + 1]
    name = {"mse": "mse", "l1": "mae"}[distance]
    reference = piq.ContentLoss(stack, layers=[module], distance=name)
    sr, hr = photos(9), photos(10)
    expected = reference(sr, hr) / channels
    torch.testing.assert_close(one(spec, vgg_files[network])(sr, hr), expected, rtol=1e-4, atol=0)


def test_perceptual_layers_are_weighted_and_added() -> None:
    sr, hr = photos(1), photos(2)
    parts = [float(one(RANDOM.model_copy(update={"layers": {name: 1.0}}))(sr, hr)) for name in RANDOM.layers]
    assert float(one(RANDOM)(sr, hr)) == pytest.approx(0.5 * parts[0] + parts[1], rel=1e-5)
    assert min(parts) > 0


def test_target_features_carry_no_gradient() -> None:
    sr, hr = photos(1).requires_grad_(), photos(2).requires_grad_()
    one(RANDOM)(sr, hr).backward()
    assert hr.grad is None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_perceptual_loss_under_autocast(memory_format: torch.memory_format) -> None:
    sr, hr = (x.to(memory_format=memory_format) for x in (photos(1), photos(2)))
    sr.requires_grad_()
    (term,) = build_content_losses([RANDOM], FeaturesSpec(), memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(sr, hr)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(one(RANDOM)(photos(1), photos(2)).item(), rel=0.03)
    assert sr.grad is not None
    assert sr.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()


def test_weights_converted_beforehand_give_what_autocast_gives() -> None:
    found = []
    for dtype in (None, torch.bfloat16):
        sr = photos(1).requires_grad_()
        (term,) = build_content_losses([RANDOM], FeaturesSpec(), dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            loss = term(sr, photos(2))
        loss.backward()
        found.append((loss.detach(), sr.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_terms_have_unique_names_and_their_weights() -> None:
    specs: list[LossSpec] = [PixelLossSpec(weight=0.5), RANDOM, PixelLossSpec(weight=2.0), ColourLossSpec(), RANDOM]
    terms = build_content_losses(specs, FeaturesSpec())
    names = ["l1", "perceptual_random", "l1_2", "mean_colour", "perceptual_random_2"]
    assert [term.name for term in terms] == names
    assert [term.weight for term in terms] == [0.5, 1.0, 2.0, 1.0, 1.0]


def test_missing_weights_stop_the_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        one(PerceptualLossSpec(), tmp_path / "absent.pth")
