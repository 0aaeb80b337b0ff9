from __future__ import annotations

import numpy as np
import pytest

from ray_sr.degradations.noise import PHOTONS, add_noise, gaussian_noise, poisson_noise
from ray_sr.recipes.degradations import NoiseSpec


def _flat(level: float, side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), level, np.float32)


@pytest.mark.parametrize("sigma", [1.0, 12.0, 30.0])
def test_gaussian_noise_has_mean_zero_and_its_sigma(sigma: float) -> None:
    noise = gaussian_noise(_flat(0.5), sigma, False, np.random.default_rng(0)) * 255
    assert noise.mean().item() == pytest.approx(0, abs=0.02 * sigma)
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)
    correlation = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.abs(correlation - np.eye(3)).max() < 0.03


@pytest.mark.parametrize("level", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("gray", [False, True])
def test_poisson_variance_is_proportional_to_brightness(level: float, gray: bool) -> None:
    noise = poisson_noise(_flat(level), 1.5, gray, np.random.default_rng(0))
    assert noise.mean().item() == pytest.approx(0, abs=2e-3)
    assert noise.var().item() == pytest.approx(1.5**2 * level / PHOTONS, rel=0.03)


@pytest.mark.parametrize("gaussian", [0.0, 1.0])
def test_gray_noise_is_equal_in_all_channels(gaussian: float) -> None:
    image = np.ones((50, 50, 3), np.float32) * np.array([0.3, 0.5, 0.7], np.float32)
    spec = NoiseSpec(gray=1, gaussian=gaussian, sigma=(10, 10), poisson_scale=(1, 1))
    noise = add_noise(image, spec, np.random.default_rng(0)) - image
    assert noise.std() > 0.01
    assert np.allclose(noise[..., 0], noise[..., 1], atol=1e-6)
    assert np.allclose(noise[..., 0], noise[..., 2], atol=1e-6)


def test_colour_noise_differs_between_channels() -> None:
    noise = add_noise(_flat(0.5), NoiseSpec(gray=0, sigma=(10, 10)), np.random.default_rng(0)) - 0.5
    assert (noise[..., 0] - noise[..., 1]).std() > 0.01


def test_strengths_come_from_the_range() -> None:
    spec = NoiseSpec(gaussian=1, sigma=(5, 20))
    rng = np.random.default_rng(0)
    sigmas = [add_noise(_flat(0.5, 64), spec, rng).std(axis=(0, 1))[0].item() * 255 for _ in range(100)]
    assert 4.5 < min(sigmas) < 7
    assert 18 < max(sigmas) < 21.5


def test_kinds_follow_their_share() -> None:
    """On black, Poisson noise is none: that tells the two apart."""
    rng = np.random.default_rng(0)
    spec = NoiseSpec(gaussian=0.3, sigma=(5, 5))
    noisy = [add_noise(_flat(0.0, 8), spec, rng).any().item() for _ in range(1000)]
    assert np.mean(noisy) == pytest.approx(0.3, abs=0.05)


def test_values_stay_in_range() -> None:
    for level in (0.0, 1.0):
        noisy = add_noise(_flat(level), NoiseSpec(sigma=(30, 30), gaussian=1), np.random.default_rng(0))
        assert noisy.min() >= 0
        assert noisy.max() <= 1


def test_overshoot_and_brightest_values_get_poisson_noise() -> None:
    """Bicubic overshoots: values beyond the range must not be an error of the Poisson generator."""
    image = np.ones((9, 9, 3), np.float32) * np.array([-0.1, 0.5, 1.2], np.float32)
    noisy = add_noise(image, NoiseSpec(gaussian=0), np.random.default_rng(0))
    assert np.isfinite(noisy).all()
