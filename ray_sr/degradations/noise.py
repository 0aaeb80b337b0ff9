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
    height, width, channels = image.shape
    planes = rng.standard_normal((1 if gray else channels, height, width), dtype=np.float32)
    planes *= np.float32(sigma / 255)
    return _in_colour(planes)


def poisson_noise(image: Pixels, scale: float, gray: bool, rng: np.random.Generator) -> Pixels:
    """Noise of variance scale² · brightness / PHOTONS, H×W×3: gray, the same in all channels, from the luma."""
    light = (image @ _LUMA)[None] if gray else image.transpose(2, 0, 1).copy()
    photons = clamp(light) * np.float32(PHOTONS)
    planes = (rng.poisson(photons) - photons).astype(np.float32)
    planes *= np.float32(scale / PHOTONS)
    return _in_colour(planes)


def _in_colour(planes: np.ndarray) -> Pixels:
    """1×H×W or 3×H×W to H×W×3, in memory of its own."""
    return np.asarray(cv2.merge([planes[0]] * 3 if len(planes) == 1 else list(planes)))
