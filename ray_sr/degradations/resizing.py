"""Shrinking by the recipe's scale, antialiased; and the interpolation that is not."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from ray_sr.images import resample


def shrink(batch: torch.Tensor, method: Literal["bicubic", "bilinear", "area"], scale: int) -> torch.Tensor:
    """Float N×C×H×W to N×C×H/scale×W/scale; both sides must be multiples of `scale`. Not clamped.

    bicubic is MATLAB's imresize, bilinear a triangle filter as wide as two output pixels (normalised at the
    border), area the mean of each scale×scale block.
    """
    if method == "bicubic":
        return resample.downscale(batch, scale)
    if method == "area":
        return F.avg_pool2d(batch, scale)
    size = [side // scale for side in batch.shape[-2:]]
    return F.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)


def interpolate_linearly(image: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """Float C×H×W to any height and width, bilinear without antialiasing.

    The same as torch's interpolate, whose last bits however depend on its number of threads.
    """
    for axis, side in zip((-2, -1), sides, strict=True):
        lower, upper, share = _neighbours(image.shape[axis], side)
        low, high = image.index_select(axis, lower), image.index_select(axis, upper)
        image = low + (high - low) * (share[:, None] if axis == -2 else share)
    return image


def _neighbours(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each new pixel the old ones on either side of its centre, and the share of the second."""
    centres = ((torch.arange(new) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    lower = centres.long()
    return lower, (lower + 1).clamp(max=old - 1), centres - lower
