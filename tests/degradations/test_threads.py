"""Bits that depended on torch's number of threads would make training differ between machines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.kernels import gaussian
from ray_sr.degradations.motion import motion_blur
from ray_sr.degradations.pixels import from_planes, to_planes
from ray_sr.degradations.resizing import interpolate, shrink
from ray_sr.images import resample
from ray_sr.recipes.degradations import MotionBlurSpec


def _planar(image: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    return to_planes([change(from_planes(image[None])[0])])


MOTION = MotionBlurSpec(size=5, gamma=2.2)
OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "convolution": lambda image: _planar(image, lambda pixels: convolve(pixels, gaussian(7, (2, 2)))),
    "linear interpolation": lambda image: _planar(
        image, lambda pixels: interpolate(pixels, (301, 401), "bilinear")
    ),
    "means": lambda image: _planar(image, lambda pixels: interpolate(pixels, (301, 401), "area")),
    "free bicubic": lambda image: resample.resize_to(image[None], 301, 401),
    "bicubic": lambda image: shrink(image[None], "bicubic", 11),
    "bilinear": lambda image: shrink(image[None], "bilinear", 11),
    "area": lambda image: shrink(image[None], "area", 11),
    "motion blur": lambda image: _planar(
        image, lambda pixels: motion_blur(pixels, MOTION, np.random.default_rng(0))
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_every_bit_is_the_same_with_more_threads(operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    image = torch.rand(3, 1023, 517, generator=torch.Generator().manual_seed(0))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(operation(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
