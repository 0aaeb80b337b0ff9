"""Sensor noise: Gaussian of one strength, or Poisson that grows with brightness; in colour or gray."""

from __future__ import annotations

import cv2
import numpy as np

from ray_sr.degradations.pixels import Pixels, clamp
from ray_sr.recipes.degradations import NoiseSpec

# Poisson noise of scale 1 is that of a sensor which counts this many photons in white. Real-ESRGAN takes the
# number of distinct values in each picture, rounded up to a power of two: 256 for nearly all photos, but
# fewer for a flat crop, whose noise would then depend on where it was cut.
PHOTONS = 256
FEW = 12  # photons: from here on a Poisson distribution is near enough to what a normal number makes of it

_LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)


def add_noise(image: Pixels, spec: NoiseSpec, rng: np.random.Generator) -> Pixels:
    """Adds noise drawn by `spec` to float32 H×W×3 and clamps to [0, 1], or leaves it as it is."""
    if rng.random() >= spec.probability:
        return image
    gray = rng.random() < spec.gray
    if rng.random() < spec.gaussian:
        noise = gaussian_noise(image, rng.uniform(*spec.sigma), gray, rng)
    else:
        noise = poisson_noise(image, rng.uniform(*spec.poisson_scale), gray, rng)
    noise += image
    return clamp(noise)


def gaussian_noise(image: Pixels, sigma: float, gray: bool, rng: np.random.Generator) -> Pixels:
    """Noise of standard deviation `sigma` / 255, H×W×3: gray, the same in all channels."""
    noise = normal_numbers(image.shape[:2] if gray else image.shape, rng)
    noise *= np.float32(sigma / 255)
    return _in_colour(noise)


def poisson_noise(image: Pixels, scale: float, gray: bool, rng: np.random.Generator) -> Pixels:
    """Noise of variance scale² · brightness / PHOTONS, H×W×3: gray, the same in all channels, from the luma."""
    photons = clamp(image @ _LUMA if gray else image.copy())
    photons *= np.float32(PHOTONS)
    noise = poisson_deviations(photons, rng)
    noise *= np.float32(scale / PHOTONS)
    return _in_colour(noise)


def poisson_deviations(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts less their means, float32 of the shape of `means`, which is float32 and not below 0.

    Means below FEW are drawn exactly. Above, a normal number z becomes a count by the Cornish-Fisher expansion for
    the cumulants of a Poisson distribution (all equal to the mean), less the 1/12 of variance that rounding adds
    (Sheppard): five times as fast, and no event's probability differs by more than 0.0005 from the exact one.
    """
    dark = means < FEW
    if not dark.any():
        return _expansion(means, rng)
    deviations = _expansion(np.maximum(means, np.float32(FEW)), rng)
    deviations[dark] = rng.poisson(means[dark]) - means[dark]
    return deviations


def _expansion(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """round(mean + s·z + (1 - z²)·(z / 72s - 1/6)) - mean, where s² = mean - 1/12; in place, pass by pass."""
    z = normal_numbers(means.shape, rng)
    sigma = means - np.float32(1 / 12)
    np.sqrt(sigma, out=sigma)
    found = z / sigma
    found *= np.float32(1 / 72)
    found -= np.float32(1 / 6)
    sigma *= z
    z *= z
    found *= np.subtract(np.float32(1), z, out=z)
    found += sigma
    found += means
    np.rint(found, out=found)
    np.maximum(found, 0, out=found)  # one of a million would be below, at FEW photons
    found -= means
    return found


def normal_numbers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Standard normal numbers, float32, by OpenCV's ziggurat: four times as fast as numpy's.

    `rng` draws the seed alone, of all 32 bits, since the first number has its sign from them. OpenCV's generator is
    of this thread, which no other can disturb between the lines.
    """
    numbers = np.empty(shape, np.float32)
    cv2.setRNGSeed(int(rng.integers(-(2**31), 2**31)))
    cv2.randn(numbers.reshape(1, -1), np.zeros(1), np.ones(1))
    return numbers


def _in_colour(noise: np.ndarray) -> Pixels:
    """H×W to H×W×3 with three equal channels; H×W×3 as it is."""
    return noise if noise.ndim == 3 else np.asarray(cv2.merge([noise] * 3))
