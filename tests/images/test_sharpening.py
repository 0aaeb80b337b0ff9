"""The unsharp mask against SciPy's Gaussian, and that both ways of blurring give the same photos."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from ray_sr.degradations import degrade
from ray_sr.images.sharpening import gaussian_blur, sharpen
from ray_sr.losses import build_content_losses
from ray_sr.recipes.degradations import SharpenSpec
from ray_sr.recipes.losses import FeaturesSpec, LossSpec, PerceptualLossSpec, PixelLossSpec
from tests.photos import real_photos


def photo(height: int, width: int) -> np.ndarray:
    """float64 3×height×width in [0, 1], cut out of a real photo."""
    return real_photos()["coffee"][100 : 100 + height, 200 : 200 + width].transpose(2, 0, 1) / 255


def blurred_by_scipy(planes: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(planes, 8, mode="mirror", radius=25, axes=(1, 2))


def sharpened_by_scipy(planes: np.ndarray) -> np.ndarray:
    detail = planes - blurred_by_scipy(planes)
    share = blurred_by_scipy((np.abs(detail) * 255 > 10).astype(float))
    return share * np.clip(planes + 0.5 * detail, 0, 1) + (1 - share) * planes


@pytest.mark.parametrize(("height", "width"), [(96, 130), (20, 7), (1, 40), (2, 1)])
def test_photos_equal_the_formula_by_scipy(height: int, width: int) -> None:
    planes = photo(height, width)
    batch = torch.from_numpy(np.stack([planes, planes[:, ::-1].copy()]))
    np.testing.assert_allclose(gaussian_blur(batch)[0], blurred_by_scipy(planes), atol=1e-12)
    np.testing.assert_allclose(sharpen(batch)[0], sharpened_by_scipy(planes), atol=1e-12)
    np.testing.assert_allclose(sharpen(batch)[1], sharpened_by_scipy(planes[:, ::-1]), atol=1e-12)


def test_edges_grow_steeper_and_even_regions_stay() -> None:
    step = torch.full((1, 1, 64, 200), 0.3)
    step[..., 100:] = 0.6
    result = sharpen(step)
    torch.testing.assert_close(result[..., :40], step[..., :40])  # out of reach of the edge twice over
    torch.testing.assert_close(result[..., 160:], step[..., 160:])
    assert result[0, 0, 32, 99] < 0.25
    assert result[0, 0, 32, 100] > 0.65
    faint = torch.full((1, 1, 64, 64), 0.5) + 0.02 * torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(sharpen(faint), faint)


def test_the_degradation_gives_the_same_photos_as_the_target_of_the_losses() -> None:
    pixels = real_photos()["chelsea"][None, :240, :200]
    degraded = degrade(pixels, [SharpenSpec()], 1, [np.random.default_rng(0)])
    target = sharpen(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255)
    assert np.abs(degraded / 255 - target.permute(0, 2, 3, 1).numpy()).max() < 0.6 / 255
    assert np.abs(degraded.astype(int) - pixels).max() > 20


@pytest.mark.parametrize(
    "spec",
    [
        PixelLossSpec(kind="l1", target="sharpened"),
        PerceptualLossSpec(network="random", layers={"conv2_2": 1.0}, target="sharpened"),
    ],
    ids=lambda spec: spec.kind,
)
def test_a_loss_with_the_sharpened_target_is_zero_at_that_target_only(spec: LossSpec) -> None:
    (loss,) = build_content_losses([spec], FeaturesSpec())
    hr = torch.from_numpy(photo(64, 64)[None]).float()
    assert float(loss(sharpen(hr), hr)) == 0
    assert float(loss(hr, hr)) > 1e-3


def test_bfloat16_autocast_does_not_touch_the_target() -> None:
    hr: Tensor = torch.from_numpy(photo(64, 64)[None]).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = sharpen(hr)
    assert torch.equal(inside, sharpen(hr))
