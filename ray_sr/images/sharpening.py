"""Unsharp masking as Real-ESRGAN uses it (arXiv 2107.10833) to train networks that sharpen.

What a wide Gaussian leaves over is added again, half as strong: only where it is distinct, so that noise in
even regions is not raised, and the borders of such places are softened by the same Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

KERNEL = 51
SIGMA = 8.0  # what OpenCV takes for 51 pixels
AMOUNT = 0.5
THRESHOLD = 10 / 255


def gaussian_blur(photos: Tensor) -> Tensor:
    """Float N×C×H×W blurred by SIGMA, reflected at the border. For crops: its cost grows with the side's cube."""
    height, width = (_blur_matrix(side, photos.device, photos.dtype) for side in photos.shape[-2:])
    with torch.autocast(photos.device.type, enabled=False):
        return height @ photos @ width.T


def sharpen(photos: Tensor, blur: Callable[[Tensor], Tensor] = gaussian_blur) -> Tensor:
    """Sharpened photos of float …×H×W in [0, 1]: the same shape, device, dtype and range.

    `blur` convolves with a Gaussian of SIGMA, cut off at KERNEL pixels.
    """
    detail = photos - blur(photos)
    distinct = blur((detail.abs() > THRESHOLD).to(photos.dtype))
    sharp = (photos + AMOUNT * detail).clamp(0, 1)
    return photos + distinct * (sharp - photos)


@lru_cache(maxsize=16)
def _blur_matrix(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """side×side: how much of each input pixel every output pixel of a line gets. Kept on the device."""
    offsets = np.arange(KERNEL) - KERNEL // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    period = max(2 * side - 2, 1)
    sources = (np.arange(side)[:, None] + offsets) % period
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], np.minimum(sources, period - sources)), weights / weights.sum())
    return torch.from_numpy(matrix).to(device, dtype)
