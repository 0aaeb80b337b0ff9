from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import scipy.ndimage
import scipy.special

from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.kernels import blur, gaussian, plateau, random_kernel, random_size, sinc
from ray_sr.recipes.degradations import BlurKernel, BlurSpec
from tests.degradations.pictures import picture

KINDS: tuple[BlurKernel, ...] = get_args(BlurKernel)


def _spread(kernel: np.ndarray, angle: float) -> float:
    """Standard deviation of the kernel along a direction (x right, y down)."""
    axis = np.arange(len(kernel)) - len(kernel) // 2
    along = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
    return math.sqrt((kernel * along**2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_random_kernels_are_odd_centred_and_sum_to_one(kind: BlurKernel) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        kernel = random_kernel({kind: 2.0}, (7, 21), (0.2, 3.0), rng)
        assert kernel.shape[0] == kernel.shape[1]
        assert kernel.shape[0] in range(7, 22, 2)
        assert kernel.sum() == pytest.approx(1)
        assert np.allclose(kernel, kernel[::-1, ::-1])
        assert kernel.argmax() == kernel.size // 2
        if kind.endswith("isotropic") and not kind.endswith("anisotropic"):
            assert np.allclose(kernel, kernel.T)
            assert np.allclose(kernel, kernel[:, ::-1])


def test_gaussian_is_the_product_of_two_gaussians() -> None:
    axis = np.arange(-10, 11)
    along_x, along_y = np.exp(-(axis**2) / (2 * 2.5**2)), np.exp(-(axis**2) / (2 * 1.2**2))
    expected = np.outer(along_y / along_y.sum(), along_x / along_x.sum())
    assert np.allclose(gaussian(21, (2.5, 1.2)), expected)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, -2.0])
@pytest.mark.parametrize("family", [gaussian, plateau])
def test_anisotropic_kernels_are_longest_along_their_angle(family: Callable[..., np.ndarray], angle: float) -> None:
    kernel = family(41, (4.0, 1.5), angle, 1.6)
    directions = np.arange(0, math.pi, math.pi / 180)
    longest = directions[np.argmax([_spread(kernel, direction) for direction in directions])]
    assert math.cos(2 * (longest - angle)) > math.cos(2 * math.radians(2))


def test_gaussian_has_its_standard_deviations() -> None:
    kernel = gaussian(41, (4.0, 1.5), 0.7)
    assert _spread(kernel, 0.7) == pytest.approx(4.0, rel=1e-3)
    assert _spread(kernel, 0.7 + math.pi / 2) == pytest.approx(1.5, rel=1e-3)


def test_exponents_shape_the_kernels() -> None:
    """At one sigma a generalised Gaussian is exp(-1/2) and a plateau 1/2 of its middle, for every exponent."""
    for exponent in (0.5, 1.0, 3.0):
        generalised, flat = gaussian(21, (3, 3), 0, exponent), plateau(21, (3, 3), 0, exponent)
        assert generalised[10, 13] / generalised[10, 10] == pytest.approx(math.exp(-0.5))
        assert flat[10, 13] / flat[10, 10] == pytest.approx(0.5)
    assert gaussian(21, (3, 3), 0, 3.0)[10, 12] > gaussian(21, (3, 3), 0, 1.0)[10, 12]
    assert np.allclose(gaussian(21, (3, 3), 0, 1.0), gaussian(21, (3, 3)))


def test_sinc_is_a_low_pass() -> None:
    cutoff = math.pi / 2
    kernel = sinc(61, cutoff)
    response = np.abs(np.fft.fft(kernel.sum(axis=0), 512))
    frequencies = np.abs(np.fft.fftfreq(512)) * 2 * math.pi
    assert np.all(np.abs(response[frequencies < cutoff * 0.8] - 1) < 0.1)
    assert np.all(response[frequencies > cutoff * 1.2] < 0.1)


def test_sinc_agrees_with_its_formula() -> None:
    y, x = np.mgrid[-5:6, -5:6]
    radius = np.hypot(x, y)
    radius[5, 5] = 1
    expected = 2.0 * scipy.special.j1(2.0 * radius) / (2 * math.pi * radius)
    expected[5, 5] = 2.0**2 / (4 * math.pi)
    assert np.allclose(sinc(11, 2.0), expected / expected.sum())


def test_kinds_follow_their_frequencies() -> None:
    rng = np.random.default_rng(0)
    narrow = sum(
        random_kernel({"isotropic": 3.0, "sinc": 1.0}, (7, 7), (0.2, 0.2), rng).min() >= 0 for _ in range(2000)
    )
    assert narrow / 2000 == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(
    ("sizes", "possible"),
    [((7, 21), set(range(7, 22, 2))), ((8, 12), {9, 11}), ((5, 5), {5}), ((8, 8), {9}), ((1, 3), {1, 3})],
)
def test_sizes_are_odd_and_all_occur(sizes: tuple[int, int], possible: set[int]) -> None:
    rng = np.random.default_rng(0)
    assert {random_size(sizes, rng) for _ in range(300)} == possible


def test_no_width_is_no_blur() -> None:
    image = picture(20, 30).astype(np.float32) / 255
    blurred = blur(image, BlurSpec(sigma=(0.0, 0.0)), np.random.default_rng(0))
    assert np.allclose(blurred, image, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 30, 41), (3, 5, 64), (1, 1, 9), (3, 2, 2)])
def test_convolution_agrees_with_scipy(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.random(shape, dtype=np.float32), rng.random((9, 13))
    kernel /= kernel.sum()
    expected = [scipy.ndimage.convolve(channel, kernel, mode="mirror") for channel in image.astype(float)]
    result = convolve(np.ascontiguousarray(image.transpose(1, 2, 0)), kernel)
    assert result.shape == (*shape[1:], shape[0])
    assert np.allclose(result.transpose(2, 0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
def test_compact_gaussians_blur_as_whole_ones(kind: BlurKernel, sigma: float) -> None:
    image = picture(24, 40).astype(np.float32) / 255
    whole, compact = (
        convolve(image, random_kernel({kind: 1.0}, (21, 21), (0.2, sigma), np.random.default_rng(5), compact))
        for compact in (False, True)
    )
    assert np.abs(whole - compact).max() < 0.1 / 255


@pytest.mark.parametrize("side", [1, 2, 4, 7, 30])
def test_convolution_has_its_origin_in_the_middle(side: int) -> None:
    image = np.random.default_rng(0).random((12, 17, 3), dtype=np.float32)
    pulse = np.zeros((side, side))
    pulse[side // 2, side // 2] = 1
    assert np.allclose(convolve(image, pulse), image, atol=1e-5)
