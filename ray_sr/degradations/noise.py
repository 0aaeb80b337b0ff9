"""Sensor noise: Gaussian of one strength, or Poisson that grows with brightness; in colour or gray."""

from __future__ import annotations

import numpy as np
import torch

from ray_sr.recipes.degradations import NoiseSpec

# Poisson noise of scale 1 is that of a sensor which counts this many photons in white. Real-ESRGAN takes the
# number of distinct values in each picture, rounded up to a power of two: 256 for nearly all photos, but
# fewer for a flat crop, whose noise would then depend on where it was cut.
PHOTONS = 256

_LUMA = torch.tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)


def add_noise(image: torch.Tensor, spec: NoiseSpec, rng: np.random.Generator) -> torch.Tensor:
    """Adds noise drawn by `spec` to float32 3×H×W and clamps to [0, 1], or leaves it as it is."""
    if rng.random() >= spec.probability:
        return image
    gray = rng.random() < spec.gray
    if rng.random() < spec.gaussian:
        noise = gaussian_noise(image, rng.uniform(*spec.sigma), gray, rng)
    else:
        noise = poisson_noise(image, rng.uniform(*spec.poisson_scale), gray, rng)
    return noise.add(image).clamp_(0, 1)


def gaussian_noise(image: torch.Tensor, sigma: float, gray: bool, rng: np.random.Generator) -> torch.Tensor:
    """Noise of standard deviation `sigma` / 255, of shape C×H×W or, gray, 1×H×W."""
    channels, height, width = image.shape
    noise = rng.standard_normal((1 if gray else channels, height, width), dtype=np.float32)
    return torch.from_numpy(noise).mul_(sigma / 255)


def poisson_noise(image: torch.Tensor, scale: float, gray: bool, rng: np.random.Generator) -> torch.Tensor:
    """Noise of variance scale² · brightness / PHOTONS, of shape 3×H×W or, gray, 1×H×W from the luma."""
    light = (image * _LUMA).sum(0, keepdim=True) if gray else image
    photons = (light.clamp(0, 1) * PHOTONS).numpy()
    noise = (rng.poisson(photons) - photons).astype(np.float32)
    return torch.from_numpy(noise).mul_(scale / PHOTONS)
