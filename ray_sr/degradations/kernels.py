"""Blur kernels, each a float64 square of odd side that sums to 1, and blurring with a random one.

The families and the ranges of their shapes are those of Real-ESRGAN (arXiv 2107.10833, section 3.1); the
generalised Gaussian is from Liu et al. (2020), "Estimating generalized Gaussian blur kernels for out-of-focus
image deblurring". Sides are in pixels, angles in radians from the x axis (right) towards the y axis (down).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from ray_sr.degradations.convolution import convolve
from ray_sr.recipes.degradations import BlurKernel, BlurSpec

GENERALISED_EXPONENTS = (0.5, 4.0)
PLATEAU_EXPONENTS = (1.0, 2.0)

_LEAST_SIGMA = 1e-3  # a Gaussian this narrow is one pixel: no blur, and no division by zero


def blur(image: torch.Tensor, spec: BlurSpec, rng: np.random.Generator) -> torch.Tensor:
    """Blurs float32 C×H×W with a kernel drawn by `spec`, or leaves it as it is."""
    if rng.random() >= spec.probability:
        return image
    return convolve(image, random_kernel(spec.kernels, spec.size, spec.sigma, rng))


def random_kernel(
    kinds: Mapping[BlurKernel, float],
    sizes: tuple[int, int],
    sigmas: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A kernel whose kind is drawn by relative frequency, odd size and sigmas uniformly from their ranges."""
    shares = np.array(list(kinds.values()))
    kind = list(kinds)[rng.choice(len(shares), p=shares / shares.sum())]
    size = random_size(sizes, rng)
    if kind == "sinc":
        return sinc(size, rng.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi))
    family, _, symmetry = kind.rpartition("_")
    if symmetry == "isotropic":
        widths, angle = (rng.uniform(*sigmas),) * 2, 0.0
    else:
        widths, angle = (rng.uniform(*sigmas), rng.uniform(*sigmas)), rng.uniform(-math.pi, math.pi)
    if family == "plateau":
        return plateau(size, widths, angle, _random_exponent(PLATEAU_EXPONENTS, rng))
    exponent = _random_exponent(GENERALISED_EXPONENTS, rng) if family == "generalised" else 1.0
    return gaussian(size, widths, angle, exponent)


def random_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    """An odd size within [low, high]; the next odd one where there is none."""
    low, high = sizes[0] // 2, (sizes[1] - 1) // 2
    return int(2 * rng.integers(low, max(low, high) + 1) + 1)


def gaussian(size: int, sigmas: tuple[float, float], angle: float = 0.0, exponent: float = 1.0) -> np.ndarray:
    """exp(-(dᵀ Σ⁻¹ d)^exponent / 2): Gaussian, or generalised for exponents other than 1.

    `sigmas` are the standard deviations along and across `angle`.
    """
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigmas, angle) ** exponent))


def plateau(size: int, sigmas: tuple[float, float], angle: float = 0.0, exponent: float = 1.0) -> np.ndarray:
    """1 / (1 + (dᵀ Σ⁻¹ d)^exponent): flat in the middle, with sides the steeper the larger the exponent."""
    return _normalised(1 / (1 + _squared_distance(size, sigmas, angle) ** exponent))


def sinc(size: int, cutoff: float) -> np.ndarray:
    """Circular ideal low-pass, cutoff · J₁(cutoff · r) / (2π r), cut to size: it rings. Cutoff up to π."""
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis)
    radius[size // 2, size // 2] = 1e-6  # J₁(x) / x tends to 1/2 in the middle
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    return _normalised(bessel / radius)


def _squared_distance(size: int, sigmas: tuple[float, float], angle: float) -> np.ndarray:
    axis = np.arange(size) - size // 2
    across, down = axis, axis[:, None]
    along_sigma, across_sigma = (max(sigma, _LEAST_SIGMA) for sigma in sigmas)
    u = (across * math.cos(angle) + down * math.sin(angle)) / along_sigma
    v = (down * math.cos(angle) - across * math.sin(angle)) / across_sigma
    return u**2 + v**2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def _random_exponent(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Below 1 and above 1 equally often, uniformly on either side."""
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])
