"""Sub-images -> training batches: random crops, flips, quarter turns and degradation, as a pure function.

Everything random about a crop follows from (seed, sub-image, epoch, number of the crop) alone, so the same
crops come out of one task or sixteen, on any machine and after any restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_sr.degradations import degrade
from ray_sr.recipe import DegradationSpec, Recipe

_CROPS_PER_EPOCH = 1 << 20  # room for the crop's number beside the epoch in the key of its generator
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class CropPlan:
    """How crops are cut and degraded."""

    seed: int
    scale: int
    crop: int
    crops_per_image: int
    flips: bool
    rotations: bool
    degradation: tuple[DegradationSpec, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> CropPlan:
        data = recipe.data
        return cls(
            seed=recipe.seed,
            scale=recipe.scale,
            crop=data.crop,
            crops_per_image=data.crops_per_image,
            flips=data.flips,
            rotations=data.rotations,
            degradation=tuple(recipe.degradation),
        )


@dataclass(frozen=True)
class Visit:
    """A sub-image at hand in some epoch: pixels uint8 H×W×3, its id in the shards."""

    pixels: np.ndarray
    id: int
    epoch: int


def crop_generator(seed: int, sub_image: int, epoch: int, crop: int) -> np.random.Generator:
    """The generator of one crop: Philox (Salmon et al. 2011), independent for each key."""
    key = np.array(
        [(seed * 0x9E3779B97F4A7C15 ^ sub_image) & _MASK, epoch * _CROPS_PER_EPOCH + crop], dtype=np.uint64
    )
    return np.random.Generator(np.random.Philox(key=key))


def make_crops(visits: Sequence[Visit], plan: CropPlan) -> tuple[np.ndarray, np.ndarray]:
    """Crops of these sub-images: (LR uint8 N×h×w×3, HR uint8 N×H×W×3), `crops_per_image` of each in turn."""
    crops: list[np.ndarray] = []
    generators: list[np.random.Generator] = []
    for visit in visits:
        for number in range(plan.crops_per_image):
            generator = crop_generator(plan.seed, visit.id, visit.epoch, number)
            crops.append(_random_crop(visit.pixels, plan, generator))
            generators.append(generator)
    hr = np.stack(crops)
    return degrade(hr, plan.degradation, plan.scale, generators), hr


def _random_crop(pixels: np.ndarray, plan: CropPlan, generator: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    top = int(generator.integers(height - plan.crop + 1))
    left = int(generator.integers(width - plan.crop + 1))
    crop = pixels[top : top + plan.crop, left : left + plan.crop]
    if plan.flips and generator.integers(2):
        crop = crop[:, ::-1]
    if plan.rotations:
        crop = np.rot90(crop, int(generator.integers(4)))
    return crop
