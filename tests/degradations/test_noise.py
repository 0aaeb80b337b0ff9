from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import kstest, norm, poisson

from ray_sr.degradations import noise
from ray_sr.degradations.noise import (
    FEW,
    PHOTONS,
    add_noise,
    gaussian_noise,
    normal_numbers,
    poisson_deviations,
    poisson_noise,
)
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


DRAWS = 1 << 20


def test_normal_numbers_are_normal_to_their_tails_and_of_their_generator_alone() -> None:
    drawn = normal_numbers((DRAWS,), np.random.default_rng(0))
    assert kstest(drawn, "norm").pvalue > 0.01
    for edge in (3, 4):
        expected = DRAWS * 2 * norm.sf(edge)
        assert np.count_nonzero(np.abs(drawn) > edge) == pytest.approx(expected, abs=5 * np.sqrt(expected))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(DRAWS)
    fields = np.stack([normal_numbers((8, 9, 3), np.random.default_rng(seed)).ravel() for seed in range(400)])
    assert np.abs(np.corrcoef(fields) - np.eye(400)).max() < 0.45  # six deviations of 216 numbers
    assert kstest(fields[:, 0], "norm").pvalue > 0.01, "first numbers of different seeds"
    with ThreadPoolExecutor(4) as threads:  # each thread its own generator of OpenCV
        beside = list(threads.map(lambda seed: normal_numbers((300, 300), np.random.default_rng(seed)), range(16)))
    for seed, field in enumerate(beside):
        np.testing.assert_array_equal(field, normal_numbers((300, 300), np.random.default_rng(seed)))


@pytest.mark.parametrize("mean", [0.0, 0.3, 4.0, FEW - 0.01, FEW, 12.5, 31.7, 100.0, 256.0])
def test_counts_of_photons_have_the_distribution_of_poisson(mean: float) -> None:
    """Its first four moments, in whole photons."""
    means = np.full(DRAWS, mean, np.float32)
    deviations = poisson_deviations(means, np.random.default_rng(0))
    assert deviations.dtype == np.float32
    counts = np.rint(deviations + means).astype(int)
    assert np.abs(deviations + means - counts).max() < 1e-4  # whole photons
    assert counts.min() >= 0
    if not mean:
        assert not counts.any()
        return
    assert counts.mean().item() == pytest.approx(mean, abs=5 * np.sqrt(mean / DRAWS))
    assert counts.var().item() == pytest.approx(mean, rel=5 * np.sqrt((2 + 1 / mean) / DRAWS))
    standard = (counts - mean) / np.sqrt(mean)
    assert (standard**3).mean().item() == pytest.approx(mean**-0.5, abs=0.03)
    if mean >= 1:
        assert (standard**4).mean().item() - 3 == pytest.approx(1 / mean, abs=0.06)


@pytest.mark.parametrize("mean", [FEW, 13.4, 20.0, 57.3, 256.0])
def test_no_event_is_more_or_less_likely_than_promised(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total variation from scipy's distribution, of normal numbers spread evenly over theirs, without chance.

    Plain rounding of a normal number is ten times as far away.
    """
    evenly = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS).astype(np.float32)
    monkeypatch.setattr(noise, "normal_numbers", lambda shape, rng: evenly.reshape(shape).copy())
    means = np.full(DRAWS, mean, np.float32)
    counts = np.rint(poisson_deviations(means, np.random.default_rng(0)) + means).astype(int)
    seen = np.bincount(counts, minlength=600) / DRAWS
    assert np.abs(seen - poisson(mean).pmf(np.arange(len(seen)))).sum() / 2 < 5e-4


def test_dark_pixels_among_bright_ones_are_drawn_for_themselves() -> None:
    means = np.tile(np.array([0.0, 2.0, 200.0], np.float32), (100_000, 1))
    deviations = poisson_deviations(means, np.random.default_rng(1))
    assert not deviations[:, 0].any()
    np.testing.assert_allclose(deviations.var(axis=0)[1:], [2, 200], rtol=0.03)
    np.testing.assert_allclose((deviations[:, 1] ** 3).mean(), 2, rtol=0.1)  # a Poisson's third moment is its mean
    assert np.abs(np.corrcoef(deviations[:, 1:].T)[0, 1]) < 0.02


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
