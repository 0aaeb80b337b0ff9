from __future__ import annotations

import numpy as np
import pytest

from ray_sr.degradations.motion import LENGTH, POINTS, motion_blur, motion_kernel, trajectory
from ray_sr.recipes.degradations import MotionBlurSpec
from tests.degradations.pictures import picture


def _photo(height: int, width: int) -> np.ndarray:
    return picture(height, width).astype(np.float32) / 255


@pytest.mark.parametrize("size", [3, 4, 9, 30, 31, 127])
@pytest.mark.parametrize("exposure", [0.01, 0.3, 1.0])
def test_kernels_sum_to_one_and_are_centred(size: int, exposure: float) -> None:
    rng = np.random.default_rng(size)
    for _ in range(5):
        kernel = motion_kernel(size, exposure, rng)
        assert kernel.shape == (size, size)
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1)
        middle = [(kernel.sum(axis=1 - axis) * np.arange(size)).sum() for axis in (0, 1)]
        assert middle == pytest.approx([size // 2] * 2, abs=1e-6)


def test_no_exposure_is_no_blur() -> None:
    kernel = motion_kernel(31, 0.0, np.random.default_rng(0))
    assert kernel[15, 15] == pytest.approx(1)
    assert motion_kernel(31, 0.005, np.random.default_rng(0))[15, 15] > 0.9


def test_longer_exposure_blurs_more() -> None:
    def spread(exposure: float) -> float:
        offsets = np.arange(31) - 15
        kernels = [motion_kernel(31, exposure, np.random.default_rng(seed)) for seed in range(20)]
        return float(np.mean([(k * (offsets**2 + offsets[:, None] ** 2)).sum() for k in kernels]))

    assert spread(0.05) < spread(0.2) < spread(1.0)


def test_trajectory_walks_its_length_at_constant_speed() -> None:
    for seed in range(5):
        path = trajectory(np.random.default_rng(seed))
        steps = np.abs(np.diff(path))
        assert len(path) == POINTS
        assert path[0] == 0
        assert np.allclose(steps, LENGTH / (POINTS - 1))
        assert np.abs(path).max() <= LENGTH


def test_trajectories_start_in_all_directions() -> None:
    starts = np.array([trajectory(np.random.default_rng(seed))[20] for seed in range(60)])
    quadrants = set(zip(np.sign(starts.real), np.sign(starts.imag), strict=True))
    assert len(quadrants) == 4


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_brightness_is_kept_and_detail_is_lost(gamma: float) -> None:
    photo = _photo(60, 100)
    spec = MotionBlurSpec(size=21, gamma=gamma, exposure=(1, 1))
    blurred = motion_blur(photo, spec, np.random.default_rng(0))
    assert blurred.shape == photo.shape
    assert np.allclose(blurred.mean((0, 1)), photo.mean((0, 1)), atol=0.02)
    assert (blurred.std((0, 1)) < photo.std((0, 1))).all()
    assert np.abs(np.diff(blurred, axis=1)).mean() < 0.8 * np.abs(np.diff(photo, axis=1)).mean()


def test_gamma_blurs_light_and_not_stored_values() -> None:
    """Black and white stripes become half the light: 0.5 of the linear values, more of the stored ones."""
    photo = np.zeros((63, 64, 3), np.float32)
    photo[:, ::2] = 1
    spec = MotionBlurSpec(size=31, gamma=2.2, exposure=(1, 1))
    linear, plain = (
        motion_blur(photo, spec.model_copy(update={"gamma": gamma}), np.random.default_rng(1)).mean().item()
        for gamma in (2.2, 1.0)
    )
    assert plain == pytest.approx(0.5, abs=0.02)
    assert linear == pytest.approx(0.5 ** (1 / 2.2), abs=0.03)


def test_small_photos_and_overshoot_are_blurred() -> None:
    photo = np.full((2, 40, 3), 1.1, np.float32)
    photo[..., 0] = -0.1
    blurred = motion_blur(photo, MotionBlurSpec(size=127, gamma=2.2), np.random.default_rng(0))
    assert np.allclose(blurred, photo.clip(0, 1), atol=5e-3)
