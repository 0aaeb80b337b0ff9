"""Blur kernels, each a float64 square of odd side that sums to 1, and blurring with a random one.

The families and the ranges of their shapes are those of Real-ESRGAN (arXiv 2107.10833, section 3.1); the
generalised Gaussian is from Liu et al. (2020), "Estimating generalized Gaussian blur kernels for out-of-focus
image deblurring". Sides are in pixels, angles in radians from the x axis (right) towards the y axis (down).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.pixels import Pixels
from ray_sr.recipes.degradations import BlurKernel, BlurSpec

GENERALISED_EXPONENTS = (0.5, 4.0)
PLATEAU_EXPONENTS = (1.0, 2.0)

_LEAST_SIGMA = 1e-3  # a Gaussian this narrow is one pixel: no blur, and no division by zero


def blur(image: Pixels, spec: BlurSpec, rng: np.random.Generator) -> Pixels:
    """Blurs float32 H×W×C with a kernel drawn by `spec`, or leaves it as it is."""
    if rng.random() >= spec.probability:
        return image
    return convolve(image, random_kernel(spec.kernels, spec.size, spec.sigma, rng, compact=True))


def random_kernel(
    kinds: Mapping[BlurKernel, float],
    sizes: tuple[int, int],
    sigmas: tuple[float, float],
    rng: np.random.Generator,
    compact: bool = False,
) -> np.ndarray:
    """A kernel whose kind is drawn by relative frequency, odd size and sigmas uniformly from their ranges.

    `compact`: Gaussians are cut off where they weigh nothing, and round ones come as a row, whose product with
    itself is the kernel: they are applied in a fraction of the time.
    """
    kind = _drawn(kinds, rng)
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
    if family == "generalised":
        return gaussian(size, widths, angle, _random_exponent(GENERALISED_EXPONENTS, rng))
    if not compact:
        return gaussian(size, widths, angle)
    size = min(size, _seen(max(widths)))
    return gaussian_row(size, widths[0]) if symmetry == "isotropic" else gaussian(size, widths, angle)


def _drawn(kinds: Mapping[BlurKernel, float], rng: np.random.Generator) -> BlurKernel:
    left = rng.random() * sum(kinds.values())
    for kind, share in kinds.items():
        left -= share
        if left < 0:
            return kind
    return max(kinds, key=lambda kind: kinds[kind])  # rounding: one draw of 10¹⁶


def _seen(sigma: float) -> int:
    """The odd size beyond which a Gaussian weighs nothing: less than a twentieth of an 8-bit level in all."""
    return 2 * math.ceil(4 * sigma) + 1


def random_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    """An odd size within [low, high]; the next odd one where there is none."""
    low, high = sizes[0] // 2, (sizes[1] - 1) // 2
    return int(2 * rng.integers(low, max(low, high) + 1) + 1)


def gaussian(size: int, sigmas: tuple[float, float], angle: float = 0.0, exponent: float = 1.0) -> np.ndarray:
    """exp(-(dᵀ Σ⁻¹ d)^exponent / 2): Gaussian, or generalised for exponents other than 1.

    `sigmas` are the standard deviations along and across `angle`.
    """
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigmas, angle) ** exponent))


def gaussian_row(size: int, sigma: float) -> np.ndarray:
    """The row whose product with itself is the round Gaussian of this size."""
    distance = (np.arange(size) - size // 2) / max(sigma, _LEAST_SIGMA)
    return _normalised(np.exp(-0.5 * distance**2))


def plateau(size: int, sigmas: tuple[float, float], angle: float = 0.0, exponent: float = 1.0) -> np.ndarray:
    """1 / (1 + (dᵀ Σ⁻¹ d)^exponent): flat in the middle, with sides the steeper the larger the exponent."""
    return _normalised(1 / (1 + _squared_distance(size, sigmas, angle) ** exponent))


def sinc(size: int, cutoff: float) -> np.ndarray:
    """Circular ideal low-pass, cutoff · J₁(cutoff · r) / (2π r), cut to size: it rings. Cutoff up to π."""
    radius, ring = _rings(size)
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    return _normalised((bessel / radius)[ring])


@lru_cache(maxsize=64)
def _rings(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The different distances from the middle, and for each place of the square the number of its distance."""
    axis = np.arange(size) - size // 2
    squares, ring = np.unique(axis[:, None] ** 2 + axis**2, return_inverse=True)
    radius = np.sqrt(squares)
    radius[0] = 1e-6  # J₁(x) / x tends to 1/2 in the middle
    return radius, ring.reshape(size, size)


def _squared_distance(size: int, sigmas: tuple[float, float], angle: float) -> np.ndarray:
    across, down = _axes(size)
    along_sigma, across_sigma = (max(sigma, _LEAST_SIGMA) for sigma in sigmas)
    u = across * (math.cos(angle) / along_sigma) + down * (math.sin(angle) / along_sigma)
    v = down * (math.cos(angle) / across_sigma) - across * (math.sin(angle) / across_sigma)
    u *= u
    v *= v
    u += v
    return u


@lru_cache(maxsize=64)
def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size) - size // 2).astype(np.float64)
    return axis, axis[:, None]


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def _random_exponent(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Below 1 and above 1 equally often, uniformly on either side."""
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])
