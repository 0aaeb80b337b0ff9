from __future__ import annotations

import numpy as np
import pytest

from ray_sr.degradations import degrade
from ray_sr.recipes.degradations import DegradationSpec, DownscaleSpec, SecondOrderSpec
from tests.degradations import reference
from tests.degradations.pictures import batch, generators


def _degraded(hr: np.ndarray, strength: float, scale: int = 4) -> np.ndarray:
    steps: list[DegradationSpec] = [SecondOrderSpec(strength=strength)]
    return degrade(hr, steps, scale, generators(range(len(hr))))


def _bicubic(hr: np.ndarray) -> np.ndarray:
    return degrade(hr, [DownscaleSpec()], 4, generators(range(len(hr))))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_size_is_exactly_the_scale(scale: int) -> None:
    hr = batch(12, 12 * 5, 12 * 7)
    assert _degraded(hr, 1.0, scale).shape == (12, 60 // scale, 84 // scale, 3)


def test_little_strength_is_bicubic() -> None:
    hr = batch(20, 96, 96)
    difference = np.abs(_degraded(hr, 1e-4).astype(int) - _bicubic(hr))
    assert difference.max() <= 1


def test_probability_is_the_share_of_photos_that_get_it() -> None:
    hr = batch(40, 96, 96)
    steps: list[DegradationSpec] = [SecondOrderSpec(probability=0.5)]
    degraded = degrade(hr, steps, 4, generators(range(40)))
    spared = (np.abs(degraded.astype(int) - _bicubic(hr)).max(axis=(1, 2, 3)) <= 1).sum()
    assert 12 <= spared <= 28  # 40 draws of one half: outside with a probability below 0.01


def test_more_strength_is_farther_from_bicubic() -> None:
    hr = batch(24, 96, 96)
    bicubic = _bicubic(hr)
    errors = [np.abs(_degraded(hr, s).astype(int) - bicubic).mean() for s in (0.05, 0.2, 0.5, 1.0)]
    assert errors == sorted(errors)
    assert errors[-1] > 3 * errors[0]


def test_mean_colour_is_kept() -> None:
    hr = batch(32, 96, 96)
    drift = _degraded(hr, 1.0).mean(axis=(1, 2)) - hr.mean(axis=(1, 2))
    assert np.abs(drift.mean(axis=0)).max() < 2  # no systematic change of brightness or colour
    assert np.abs(drift).max() < 20


def test_flat_pictures_get_the_noise_of_both_rounds() -> None:
    """Noise of sigma 1 to 30, then resized, compressed and joined by more, spreads over this range."""
    hr = np.full((40, 96, 96, 3), 128, np.uint8)
    spread = _degraded(hr, 1.0).std(axis=(1, 2)).mean(axis=1)
    assert 0.1 < np.quantile(spread, 0.05) < 6  # one of 200 has so little that JPEG removes it
    assert 10 < spread.max() < 60


def test_degraded_pictures_still_show_the_scene() -> None:
    hr = batch(32, 96, 96)
    pairs = zip(_degraded(hr, 1.0), _bicubic(hr), strict=True)
    alike = [np.corrcoef(lr.ravel(), bicubic.ravel())[0, 1] for lr, bicubic in pairs]
    assert np.median(alike) > 0.7
    assert min(alike) > 0.1


def test_the_result_is_that_of_other_libraries_within_rounding() -> None:
    """Most crops differ by nothing. Rounding can move a JPEG coefficient or a photon: noise is other noise then."""
    count = 60
    hr = batch(count, 96, 96)
    pairs = zip(hr, generators(range(count)), strict=True)
    expected = np.stack([reference.degrade(crop, 4, rng) for crop, rng in pairs])
    difference = np.abs(_degraded(hr, 1.0).astype(int) - expected).reshape(count, -1)
    assert np.median(difference.mean(axis=1)) < 0.02
    assert np.mean(difference.max(axis=1) <= 1) > 0.8


def test_a_crop_is_the_same_alone_and_among_others() -> None:
    hr = batch(5, 48, 48)
    together = _degraded(hr, 1.0)
    for number in range(5):
        alone = degrade(hr[number : number + 1], [SecondOrderSpec()], 4, generators([number]))
        assert np.array_equal(alone[0], together[number])
