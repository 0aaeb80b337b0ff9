"""Shrinking by the recipe's scale, antialiased; and the interpolation that is not."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ray_sr.degradations.pixels import Pixels
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


def interpolate(image: Pixels, sides: tuple[int, int], mode: Literal["area", "bilinear", "bicubic"]) -> Pixels:
    """Float32 H×W×C to any height and width as torch's interpolate does it: without antialiasing.

    area is the mean of the pixels that an output pixel touches, bicubic has a = -0.75.
    """
    if image.shape[:2] == sides:
        return image
    if mode == "area":
        return _means(image, sides)
    method = cv2.INTER_LINEAR if mode == "bilinear" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (sides[1], sides[0]), interpolation=method)).reshape(*sides, -1)


def _means(image: Pixels, sides: tuple[int, int]) -> Pixels:
    """Two products with matrices, down and across: faster on crops than any pooling of three channels."""
    (height, width), (rows, columns) = image.shape[:2], sides
    image = (_mean_matrix(height, rows) @ image.reshape(height, -1)).reshape(rows, width, -1)
    turned = cv2.transpose(image)
    turned = (_mean_matrix(width, columns) @ turned.reshape(width, -1)).reshape(columns, rows, -1)
    return np.asarray(cv2.transpose(turned))


@lru_cache(maxsize=1024)
def _mean_matrix(old: int, new: int) -> np.ndarray:
    """float32 new×old: each row is the mean of the old pixels that a new one touches."""
    first = np.arange(new) * old // new
    last = -(-(np.arange(1, new + 1) * old) // new)
    places = np.arange(old)
    touched = (places >= first[:, None]) & (places < last[:, None])
    return (touched / touched.sum(1, keepdims=True)).astype(np.float32)
