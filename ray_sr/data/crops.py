"""Sub-images -> training batches: random crops, flips, quarter turns and degradation, as a pure function.

Everything random about a crop follows from (seed, sub-image, epoch, number of the crop) alone, so the same
crops come out of one task or sixteen, on any machine and after any restart. The pixels can be cut in one
place (`cut_crops`) and degraded in another (`degrade_crops`): both draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ray_sr.degradations import degrade, is_random
from ray_sr.errors import InputError
from ray_sr.recipes.degradations import DegradationSpec
from ray_sr.recipes.recipe import Recipe

_CROPS_PER_EPOCH = 1 << 20  # room for the crop's number beside the epoch in the key of its generator
_MASK = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)


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

    @property
    def random(self) -> bool:
        """Whether the degradation draws random numbers."""
        return is_random(self.degradation)

    @property
    def paired(self) -> bool:
        """Whether the input photos come from the shards instead of a made degradation."""
        return self.degradation[0].kind == "pairs"


@dataclass(frozen=True)
class Visit:
    """A sub-image at hand in some epoch: its id in the shards and its sides in pixels."""

    id: int
    epoch: int
    height: int
    width: int


@dataclass(frozen=True)
class SubImage:
    """Pixels of a sub-image, uint8 or uint16 H×W×3, and of its input photo, H/scale×W/scale×3, where it has one."""

    pixels: np.ndarray
    inputs: np.ndarray | None = None


@dataclass(frozen=True)
class _Window:
    """Where a crop is cut, whether it is flipped, and how many quarter turns it makes."""

    top: int
    left: int
    flip: bool
    turns: int


def crop_generator(seed: int, sub_image: int, epoch: int, crop: int) -> np.random.Generator:
    """The generator of one crop's degradation: Philox (Salmon et al. 2011), independent for each key."""
    key = np.array(
        [(seed * 0x9E3779B97F4A7C15 ^ sub_image) & _MASK, epoch * _CROPS_PER_EPOCH + crop], dtype=np.uint64
    )
    return np.random.Generator(np.random.Philox(key=key))


def make_crops(
    visits: Sequence[Visit], images: Sequence[SubImage], plan: CropPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Crops of these sub-images, in their dtype: (LR N×h×w×3, HR N×H×W×3), `crops_per_image` of each in turn."""
    windows = _windows(visits, plan)
    hr = _cut([image.pixels for image in images], windows, plan, plan.crop)
    return _cut_inputs(images, windows, plan) if plan.paired else degrade_crops(hr, visits, plan), hr


def cut_crops(visits: Sequence[Visit], images: Sequence[SubImage], plan: CropPlan) -> np.ndarray:
    """The HR half of `make_crops`, for `degrade_crops` to complete elsewhere."""
    return _cut([image.pixels for image in images], _windows(visits, plan), plan, plan.crop)


def degrade_crops(hr: np.ndarray, visits: Sequence[Visit], plan: CropPlan) -> np.ndarray:
    """The LR half of `make_crops` for what `cut_crops` gave for the same visits."""
    generators = [
        crop_generator(plan.seed, visit.id, visit.epoch, number)
        for visit in visits
        for number in range(plan.crops_per_image)
        if plan.random
    ]
    return degrade(hr, plan.degradation, plan.scale, generators)


def _windows(visits: Sequence[Visit], plan: CropPlan) -> list[_Window]:
    """The window of every crop."""
    grid = plan.scale if plan.paired else 1
    drawn = iter(draw(plan.seed, visits, plan.crops_per_image).tolist())
    windows: list[_Window] = []
    for visit in visits:
        rows, columns = ((side - plan.crop) // grid + 1 for side in (visit.height, visit.width))
        for down, right, flip, turn in islice(drawn, plan.crops_per_image):
            turns = int(turn * 4) if plan.rotations else 0
            top, left = int(down * rows) * grid, int(right * columns) * grid
            windows.append(_Window(top, left, plan.flips and flip < 0.5, turns))
    return windows


def draw(seed: int, visits: Sequence[Visit], crops: int) -> np.ndarray:
    """Four numbers in [0, 1) for each crop of each visit: float64 (visits·crops)×4.

    The finalizer of SplitMix64 (Steele, Lea and Flood 2014) over what names a number: making a generator for
    each crop takes longer than cutting it.
    """
    ids = np.array([visit.id & _MASK for visit in visits], np.uint64)
    epochs = np.array([visit.epoch for visit in visits], np.uint64)
    state = _mixed(_mixed(np.full(1, seed, np.uint64)) ^ ids)
    state = _mixed(_mixed(state + epochs)[:, None] + np.arange(crops, dtype=np.uint64)).reshape(-1, 1)
    bits = _mixed(state + np.arange(4, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64: one step of the counter, then the finalizer; uint64, wrapping."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _cut_inputs(images: Sequence[SubImage], windows: Sequence[_Window], plan: CropPlan) -> np.ndarray:
    given = [image.inputs for image in images if image.inputs is not None]
    if len(given) < len(images):
        raise InputError(
            "degradation pairs: the shards hold no input photos: `ray-sr data prepare --inputs FOLDER`"
        )
    scale = plan.scale
    small = [_Window(w.top // scale, w.left // scale, w.flip, w.turns) for w in windows]
    return _cut(given, small, plan, plan.crop // scale)


def _cut(pixels: Sequence[np.ndarray], windows: Sequence[_Window], plan: CropPlan, side: int) -> np.ndarray:
    """N×side×side×3 of the windows, `crops_per_image` in each array of pixels, in the dtype of these."""
    crops = np.empty((len(windows), side, side, 3), pixels[0].dtype)
    for number, window in enumerate(windows):
        whole = pixels[number // plan.crops_per_image]
        view = _turned(whole[window.top : window.top + side, window.left : window.left + side], window)
        if view.strides[1:] == crops.strides[2:]:
            crops[number] = view
            continue
        for channel in range(3):  # NumPy copies turned planes ten times faster than turned pixels of three bytes
            crops[number, ..., channel] = view[..., channel]
    return crops


def _turned(view: np.ndarray, window: _Window) -> np.ndarray:
    """Flipped left to right, then turned counter-clockwise; a view."""
    if window.flip:
        view = view[:, ::-1]
    if window.turns % 2:
        view = view.transpose(1, 0, 2)[::-1]
    return view[::-1, ::-1] if window.turns >= 2 else view
