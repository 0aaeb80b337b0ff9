"""The border between stored pixels of 8 or 16 bits and the float32 arrays that degradations work on."""

from __future__ import annotations

import numpy as np
import torch

Pixels = np.ndarray
"""float32 H×W×3, RGB in [0, 1] (in between also somewhat beyond): the layout of OpenCV."""

_HIGHEST = {np.dtype(kind): np.iinfo(kind).max for kind in (np.uint8, np.uint16)}


def to_unit(pixels: np.ndarray) -> Pixels:
    """uint8 or uint16 of any shape to float32 in [0, 1], in memory of its own."""
    return np.divide(pixels, _HIGHEST[pixels.dtype], dtype=np.float32)


def to_uint8(pixels: Pixels) -> np.ndarray:
    """Float of any shape to uint8: clamped to [0, 1], rounded half up."""
    return to_levels(pixels, np.dtype(np.uint8))


def to_levels(pixels: Pixels, dtype: np.dtype) -> np.ndarray:
    """As `to_uint8`, also to uint16."""
    highest = _HIGHEST[dtype]
    levels = np.multiply(pixels, highest, dtype=np.float32)
    levels += 0.5
    return clamp(levels, highest).astype(dtype)


def clamp(pixels: Pixels, highest: float = 1) -> Pixels:
    """Into [0, highest], in place: np.clip does it no faster, and finds its way to it slowly on small crops."""
    np.maximum(pixels, np.float32(0), out=pixels)
    return np.minimum(pixels, np.float32(highest), out=pixels)


def to_planes(images: list[Pixels]) -> torch.Tensor:
    """Images of one size to a tensor N×3×H×W."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def from_planes(batch: torch.Tensor) -> list[Pixels]:
    """A tensor N×3×H×W to images."""
    return list(np.ascontiguousarray(batch.numpy().transpose(0, 2, 3, 1)))
