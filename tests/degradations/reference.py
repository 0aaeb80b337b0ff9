"""The second-order degradation by SciPy, Pillow and torch, drawing the same random numbers."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image

from ray_sr.degradations.kernels import random_kernel, random_size, sinc
from ray_sr.degradations.noise import normal_numbers
from ray_sr.recipes.degradations import BlurKernel

KERNELS: dict[BlurKernel, float] = {
    "isotropic": 0.45 * 0.9,
    "anisotropic": 0.25 * 0.9,
    "generalised_isotropic": 0.12 * 0.9,
    "generalised_anisotropic": 0.03 * 0.9,
    "plateau_isotropic": 0.12 * 0.9,
    "plateau_anisotropic": 0.03 * 0.9,
    "sinc": 0.1,
}
LUMA = np.array([0.2989, 0.5870, 0.1140])


def degrade(crop: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 H×W×3 to H/scale×W/scale×3, in float64 planes."""
    height, width = crop.shape[:2]
    small = (height // scale, width // scale)
    image = crop.transpose(2, 0, 1) / 255
    image = _blur(image, 1.0, 3.0, rng)
    image = _resize(image, _sides((height, width), 0.2, 0.7, 0.15, 1.5, rng), rng)
    image = _jpeg(_noise(image, 30.0, 3.0, rng), rng)
    image = _blur(image, 0.8, 1.5, rng)
    image = _resize(image, _sides(small, 0.3, 0.4, 0.3, 1.2, rng), rng)
    image = _noise(image, 25.0, 2.5, rng)
    if rng.random() < 0.5:
        image = _jpeg(_ringing(_resize(image, small, rng), rng), rng)
    else:
        image = _ringing(_resize(_jpeg(image, rng), small, rng), rng)
    return _stored(image)


def _convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.stack([scipy.ndimage.convolve(channel, kernel, mode="mirror") for channel in image])


def _blur(image: np.ndarray, often: float, sigma: float, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= often:
        return image
    return _convolved(image, random_kernel(KERNELS, (7, 21), (0.2, sigma), rng))


def _ringing(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= 0.8:
        return image
    return _convolved(image, sinc(random_size((7, 21), rng), rng.uniform(math.pi / 3, math.pi)))


def _sides(
    sides: tuple[int, int], grow: float, shrink: float, least: float, most: float, rng: np.random.Generator
) -> tuple[int, int]:
    draw = rng.random()
    factor = rng.uniform(1, most) if draw < grow else rng.uniform(least, 1) if draw < grow + shrink else 1.0
    return max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor))


def _resize(image: np.ndarray, sides: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    rng.random()  # whether it is Real-ESRGAN's way: always, at full strength
    mode = ("area", "bilinear", "bicubic")[rng.integers(3)]
    return F.interpolate(torch.from_numpy(image)[None], size=sides, mode=mode)[0].numpy()


def _noise(image: np.ndarray, sigma: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    rng.random()  # whether at all: always
    gray, gaussian = rng.random() < 0.4, rng.random() < 0.5
    if gaussian:
        strength = rng.uniform(1.0, sigma) / 255
        shape = image.shape[1:] if gray else (*image.shape[1:], 3)
        noise = strength * _planes(normal_numbers(shape, rng))
    else:
        strength = rng.uniform(0.05, scale)
        light = np.tensordot(LUMA, image, 1) if gray else image.transpose(1, 2, 0)
        photons = light.clip(0, 1) * 256
        noise = strength * _planes(_counts(photons, rng) - photons) / 256
    return (image + noise).clip(0, 1)


def _planes(noise: np.ndarray) -> np.ndarray:
    return noise[None] if noise.ndim == 2 else noise.transpose(2, 0, 1)


def _counts(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson numbers: drawn below 12; above, by the third-order Cornish-Fisher expansion of a cumulant series.

    All cumulants of the distribution are its mean; 1/12 of the variance is what rounding adds.
    """
    z = normal_numbers(means.shape, rng).astype(np.float64)
    wide = np.maximum(means.astype(np.float64), 12)
    sigma = np.sqrt(wide - 1 / 12)
    skewness, kurtosis = 1 / sigma, 1 / sigma**2
    quantile = (
        z + skewness * (z**2 - 1) / 6 + kurtosis * (z**3 - 3 * z) / 24 - skewness**2 * (2 * z**3 - 5 * z) / 36
    )
    counts = np.rint(wide + sigma * quantile).clip(0)
    dark = means < 12
    counts[dark] = rng.poisson(means[dark])
    return counts


def _stored(image: np.ndarray) -> np.ndarray:
    return np.floor(image.transpose(1, 2, 0).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rng.random()  # whether at all: always
    quality, buffer = int(rng.integers(30, 96)), BytesIO()
    Image.fromarray(_stored(image)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1) / 255
