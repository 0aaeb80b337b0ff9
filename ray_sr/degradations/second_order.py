"""Real-ESRGAN's second-order degradation (arXiv 2107.10833, section 3 and the x4plus training options).

Blur, resize, noise and JPEG, all random; the same again, milder, with a sinc filter that leaves the ringing
of sharpened photos and comes before or after the last JPEG. Each image draws its own settings.

`strength` below 1 narrows every range towards no change, as far as plain bicubic: sigmas, noise and resize
factors shrink, JPEG qualities rise. What cannot be narrowed (sinc filters, JPEG's coarse colour, and
Real-ESRGAN's resizing, which is not antialiased) happens less often instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ray_sr.degradations.compression import compress
from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.kernels import blur, random_size, sinc
from ray_sr.degradations.noise import add_noise
from ray_sr.degradations.pixels import Pixels, from_planes, to_planes
from ray_sr.degradations.resizing import interpolate
from ray_sr.images import resample
from ray_sr.recipes.degradations import BlurKernel, BlurSpec, CompressionSpec, NoiseSpec, Range, SecondOrderSpec

_SIZES = (7, 21)
_KERNELS: dict[BlurKernel, float] = {
    "isotropic": 0.45,
    "anisotropic": 0.25,
    "generalised_isotropic": 0.12,
    "generalised_anisotropic": 0.03,
    "plateau_isotropic": 0.12,
    "plateau_anisotropic": 0.03,
}
_SINC_SHARE = 0.1
_FINAL_SINC = 0.8
_QUALITY = (30, 95)
_MODES: tuple[Literal["area"], Literal["bilinear"], Literal["bicubic"]] = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class _Resize:
    """How often an image grows and shrinks (else it stays), and the range of the factor."""

    grow: float
    shrink: float
    factors: Range


@dataclass(frozen=True)
class _Order:
    """One round of degradation."""

    blur: BlurSpec
    resize: _Resize
    noise: NoiseSpec
    jpeg: CompressionSpec


def second_order(image: Pixels, spec: SecondOrderSpec, scale: int, rng: np.random.Generator) -> Pixels:
    """Degrades float32 H×W×3 to H/scale×W/scale×3; both sides must be multiples of `scale`."""
    height, width = image.shape[:2]
    small = (height // scale, width // scale)
    if spec.probability < 1 and rng.random() >= spec.probability:
        return from_planes(resample.resize_to(to_planes([image]), *small))[0]
    first, second = _first(spec.strength), _second(spec.strength)
    image = blur(image, first.blur, rng)
    image = _resize(image, _random_sides((height, width), first.resize, rng), spec.strength, rng)
    image = add_noise(image, first.noise, rng)
    image = compress(image, first.jpeg, rng)
    image = blur(image, second.blur, rng)
    image = _resize(image, _random_sides(small, second.resize, rng), spec.strength, rng)
    image = add_noise(image, second.noise, rng)
    if rng.random() < 0.5:
        image = _final_sinc(_resize(image, small, spec.strength, rng), spec.strength, rng)
        return compress(image, second.jpeg, rng)
    image = compress(image, second.jpeg, rng)
    return _final_sinc(_resize(image, small, spec.strength, rng), spec.strength, rng)


@lru_cache(maxsize=16)
def _first(strength: float) -> _Order:
    return _Order(
        blur=BlurSpec(kernels=_kernels(strength), size=_SIZES, sigma=_scaled((0.2, 3.0), strength)),
        resize=_Resize(grow=0.2, shrink=0.7, factors=_towards_one((0.15, 1.5), strength)),
        noise=_noise((1.0, 30.0), (0.05, 3.0), strength),
        jpeg=_jpeg(strength),
    )


@lru_cache(maxsize=16)
def _second(strength: float) -> _Order:
    return _Order(
        blur=BlurSpec(
            probability=0.8, kernels=_kernels(strength), size=_SIZES, sigma=_scaled((0.2, 1.5), strength)
        ),
        resize=_Resize(grow=0.3, shrink=0.4, factors=_towards_one((0.3, 1.2), strength)),
        noise=_noise((1.0, 25.0), (0.05, 2.5), strength),
        jpeg=_jpeg(strength),
    )


def _kernels(strength: float) -> dict[BlurKernel, float]:
    rest = 1 - _SINC_SHARE * strength
    return {**{kind: share * rest for kind, share in _KERNELS.items()}, "sinc": _SINC_SHARE * strength}


def _noise(sigma: Range, poisson_scale: Range, strength: float) -> NoiseSpec:
    return NoiseSpec(
        gaussian=0.5, gray=0.4, sigma=_scaled(sigma, strength), poisson_scale=_scaled(poisson_scale, strength)
    )


def _jpeg(strength: float) -> CompressionSpec:
    low, high = (round(100 - (100 - quality) * strength) for quality in _QUALITY)
    return CompressionSpec(probability=strength, quality=(low, high))


def _scaled(limits: Range, strength: float) -> Range:
    return limits[0] * strength, limits[1] * strength


def _towards_one(limits: Range, strength: float) -> Range:
    return 1 + (limits[0] - 1) * strength, 1 + (limits[1] - 1) * strength


def _random_sides(sides: tuple[int, int], resize: _Resize, rng: np.random.Generator) -> tuple[int, int]:
    draw, factor = rng.random(), 1.0
    if draw < resize.grow:
        factor = rng.uniform(1, resize.factors[1])
    elif draw < resize.grow + resize.shrink:
        factor = rng.uniform(resize.factors[0], 1)
    return max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor))


def _resize(image: Pixels, sides: tuple[int, int], strength: float, rng: np.random.Generator) -> Pixels:
    """Resizes as Real-ESRGAN does, by area, bilinear or bicubic without antialiasing; or as MATLAB does."""
    if rng.random() >= strength:
        return from_planes(resample.resize_to(to_planes([image]), *sides))[0]
    return interpolate(image, sides, _MODES[rng.integers(3)])


def _final_sinc(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    if rng.random() >= _FINAL_SINC * strength:
        return image
    return convolve(image, sinc(random_size(_SIZES, rng), rng.uniform(math.pi / 3, math.pi)))
