"""HR to LR: the steps of a recipe's degradation, applied to crops in batches or to whole photos.

Each image depends on its own pixels and its own generator of random numbers alone: the same pixels come out
alone or in a batch, on one worker or on sixteen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ray_sr.degradations.compression import compress
from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.kernels import blur, gaussian
from ray_sr.degradations.motion import motion_blur
from ray_sr.degradations.noise import add_noise
from ray_sr.degradations.pixels import Pixels, from_planes, to_levels, to_planes, to_unit
from ray_sr.degradations.resizing import shrink
from ray_sr.degradations.second_order import second_order
from ray_sr.errors import InputError, RecipeError
from ray_sr.images.resample import downscale_crops
from ray_sr.images.sharpening import KERNEL, SIGMA, sharpen
from ray_sr.recipes.degradations import (
    BlurSpec,
    CompressionSpec,
    DegradationSpec,
    DownscaleSpec,
    MotionBlurSpec,
    NoiseSpec,
    PairsSpec,
    SecondOrderSpec,
    SharpenSpec,
)

__all__ = ["degrade", "is_random"]

_BLOCK_VALUES = 2**19  # values degraded together: 2 MiB as float32, so that a block stays in the cache


def degrade(
    hr: np.ndarray, steps: Sequence[DegradationSpec], scale: int, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """Degrades uint8 or uint16 N×H×W×3 by `steps`, in their order, to N×H/scale×W/scale×3 of the same dtype.

    `rngs` holds one generator for each image; none are needed where `is_random` denies it. Values stay float32
    from the first step to the last, except inside codecs, which are those of 8 bits; they are clamped and rounded
    half up at the end.

    Raises InputError where a side is no multiple of `scale`, RecipeError where the steps make another size
    or are `pairs`, ValueError for another dtype, shape or number of generators.
    """
    _check(hr, scale)
    if is_random(steps) and len(rngs) != len(hr):
        raise ValueError(f"{len(hr)} images need as many generators, got {len(rngs)}")
    images = max(1, _BLOCK_VALUES // hr[0].size)
    blocks = (slice(start, start + images) for start in range(0, len(hr), images))
    return np.concatenate([_degrade_block(hr[block], steps, scale, rngs[block]) for block in blocks])


def _degrade_block(
    hr: np.ndarray, steps: Sequence[DegradationSpec], scale: int, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    if len(steps) == 1 and isinstance(steps[0], DownscaleSpec) and steps[0].method == "bicubic":
        return downscale_crops(hr, scale)
    images = [to_unit(image) for image in hr]
    for step in steps:
        images = _apply(step, images, scale, rngs)
    if images[0].shape[0] * scale != hr.shape[1] or images[0].shape[1] * scale != hr.shape[2]:
        kinds = ", ".join(step.kind for step in steps)
        raise RecipeError(f"degradation [{kinds}] does not shrink by {scale}: give it one downscale step")
    return np.stack([to_levels(image, hr.dtype) for image in images])


def is_random(steps: Sequence[DegradationSpec]) -> bool:
    """Whether any of the steps draws random numbers."""
    return any(step.kind not in ("downscale", "sharpen") for step in steps)


def _check(hr: np.ndarray, scale: int) -> None:
    if hr.dtype not in (np.uint8, np.uint16) or hr.ndim != 4 or hr.shape[3] != 3 or 0 in hr.shape:
        raise ValueError(f"expected uint8 or uint16 N×H×W×3, not empty, got {hr.dtype} of shape {hr.shape}")
    if hr.shape[1] % scale or hr.shape[2] % scale:
        raise InputError(f"an image of {hr.shape[2]}×{hr.shape[1]} px cannot be divided by {scale}: crop it")


def _apply(
    step: DegradationSpec, images: list[Pixels], scale: int, rngs: Sequence[np.random.Generator]
) -> list[Pixels]:
    match step:
        case DownscaleSpec():
            return from_planes(shrink(to_planes(images), step.method, scale))
        case BlurSpec():
            return _each(images, rngs, lambda image, rng: blur(image, step, rng))
        case NoiseSpec():
            return _each(images, rngs, lambda image, rng: add_noise(image, step, rng))
        case CompressionSpec():
            return _each(images, rngs, lambda image, rng: compress(image, step, rng))
        case SharpenSpec():
            return [sharpen(torch.from_numpy(image), _wide_blur).numpy() for image in images]
        case SecondOrderSpec():
            return _each(images, rngs, lambda image, rng: second_order(image, step, scale, rng))
        case MotionBlurSpec():
            return _each(images, rngs, lambda image, rng: motion_blur(image, step, rng))
        case PairsSpec():
            raise RecipeError(
                "degradation pairs makes no input photo: prepare the data with `data prepare --inputs`"
            )


def _each(
    images: list[Pixels],
    rngs: Sequence[np.random.Generator],
    degrade_one: Callable[[Pixels, np.random.Generator], Pixels],
) -> list[Pixels]:
    """Degrades image by image: sizes, kernels and codecs differ, and no image can touch another."""
    return [degrade_one(image, rng) for image, rng in zip(images, rngs, strict=True)]


def _wide_blur(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(convolve(image.numpy(), gaussian(KERNEL, (SIGMA, SIGMA))))
