"""Bicubic resizing that agrees with MATLAB's `imresize`, which the field's benchmark tables rest on.

The kernel is Keys' cubic with a = -0.5, stretched by the factor when an axis shrinks (antialiasing). Beyond
its border the image is mirrored with the edge pixel repeated, as often as the kernel needs, so that images of
one pixel are resized too. `border="replicate"` repeats the edge pixel alone, which older MATLAB did and some
published low-resolution sets were made with; the two differ within two output pixels of the border.

Whole-number images (`*_array`) are rounded after each of the two passes, as MATLAB does for uint8: every
pixel equals MATLAB's. Float batches (`downscale`, `upscale`, `resize_to`) are neither rounded nor clamped:
bicubic overshoots at edges.

Along one axis, each output row is a weighted sum of a few input rows. `torch.nn.functional.embedding_bag` is
that operation: one call resizes all columns, channels and images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Border = Literal["mirror", "replicate"]

_CUBIC_RADIUS = 2
_BLOCK_VALUES = 1024  # float64 values of a row that are summed together: 8 KiB, so that sums stay in the cache


def downscale(batch: torch.Tensor, scale: int) -> torch.Tensor:
    """Shrinks N×C×H×W by a whole factor to N×C×H/scale×W/scale; both sides must be multiples of it.

    Any floating dtype, device and value range; differentiable. Raises ValueError for other sides or scales.
    """
    return resize_to(batch, *_downscaled(_sides(batch), scale))


def upscale(batch: torch.Tensor, scale: int) -> torch.Tensor:
    """Enlarges N×C×H×W by a whole factor to N×C×H·scale×W·scale. Otherwise as `downscale`."""
    return resize_to(batch, *_upscaled(_sides(batch), scale))


def resize_to(batch: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes N×C×H×W to N×C×height×width, antialiased along each axis that shrinks.

    Any floating dtype, device and value range; differentiable. Raises ValueError for empty sizes.
    """
    sides = _sides(batch)
    for axis, size in _passes(sides, (height, width)):
        rows = _resize_rows(batch.movedim(axis + 2, 0), *_taps(sides[axis], size, "mirror"))
        batch = rows.movedim(0, axis + 2)
    return batch.contiguous()


def downscale_crops(crops: np.ndarray, scale: int) -> np.ndarray:
    """Shrinks uint8 or uint16 N×H×W×C by a whole factor to N×H/scale×W/scale×C: `downscale`, rounded half up.

    Three times as fast, since pixels stay as they lie in memory. Raises ValueError for other sides or scales.
    """
    count, height, width, channels = crops.shape
    rows, columns = _downscaled((height, width), scale)
    writable = np.require(crops, requirements=["C", "W"])  # as torch wants it
    values = torch.from_numpy(writable).to(torch.float32).reshape(count * height, width * channels)
    values = _resize_stacked(values, count, rows)
    values = values.reshape(count, rows, width, channels).transpose(1, 2).reshape(count * width, rows * channels)
    highest, kind = (255, torch.uint8) if crops.dtype == np.uint8 else (65535, torch.uint16)
    levels = _resize_stacked(values, count, columns).add_(0.5).clamp_(0, highest).to(kind)
    return levels.reshape(count, columns, rows, channels).transpose(1, 2).contiguous().numpy()


def downscale_array(image: np.ndarray, scale: int, *, border: Border = "mirror") -> np.ndarray:
    """Shrinks a uint8 or uint16 image, H×W or H×W×C, by a whole factor that divides both sides.

    Equals MATLAB's `imresize(image, 1/scale, 'bicubic')` in every pixel. Raises ValueError for other sides.
    """
    return resize_array(image, *_downscaled(_image_sides(image), scale), border=border)


def upscale_array(image: np.ndarray, scale: int, *, border: Border = "mirror") -> np.ndarray:
    """Enlarges a uint8 or uint16 image, H×W or H×W×C, by a whole factor. Otherwise as `downscale_array`."""
    return resize_array(image, *_upscaled(_image_sides(image), scale), border=border)


def resize_array(image: np.ndarray, height: int, width: int, *, border: Border = "mirror") -> np.ndarray:
    """Resizes a uint8 or uint16 image, H×W or H×W×C, to height×width; dtype and channels stay.

    The axis that shrinks more goes first, rows first when equal; each pass rounds half up and clips.
    Raises ValueError for another dtype, rank or an empty size.
    """
    sides = _image_sides(image)
    for axis, size in _passes(sides, (height, width)):
        image = _resize_array_axis(image, axis, *_taps(sides[axis], size, border))
    return image


def resize_bands(
    bands: Iterable[np.ndarray], old: tuple[int, int], new: tuple[int, int], *, border: Border = "mirror"
) -> Iterator[np.ndarray]:
    """`resize_array` of an image that comes in bands of rows, from top to bottom; so does the result.

    old, new: (height, width). Only the rows are held that the kernel still needs. Raises as `resize_array`.
    """
    rows_first = _passes(old, new)[0][0] == 0
    columns = _taps(old[1], new[1], border)
    indices, weights = _taps(old[0], new[0], border)
    last = np.maximum.accumulate(indices.max(axis=1))
    first = np.minimum.accumulate(indices.min(axis=1)[::-1])[::-1]
    held, top, done = np.empty(0), 0, 0
    for band in bands:
        _image_sides(band)
        part = band if rows_first else _resize_array_axis(band, 1, *columns)
        held = np.concatenate([held, part]) if len(held) else part
        ready = int(np.searchsorted(last, top + len(held)))
        if ready == done:
            continue
        rows = _resize_array_axis(held, 0, indices[done:ready] - top, weights[done:ready])
        yield _resize_array_axis(rows, 1, *columns) if rows_first else rows
        done = ready
        unused = int(first[done]) - top if done < new[0] else len(held)
        held, top = held[unused:], top + unused


def mod_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """The top-left part of H×W or H×W×C whose sides are the largest multiples of `multiple`: a view.

    Raises ValueError when a side is smaller than `multiple`.
    """
    _check_scale(multiple)
    height, width = (side - side % multiple for side in image.shape[:2])
    if not height or not width:
        raise ValueError(f"cannot crop {_spell(image.shape[:2])} to a multiple of {multiple}: it is smaller")
    return image[:height, :width]


def _sides(batch: torch.Tensor) -> tuple[int, int]:
    if batch.ndim != 4 or not batch.is_floating_point() or 0 in batch.shape[:2]:
        raise ValueError(
            f"expected a float batch N×C×H×W, not empty, got {batch.dtype} of shape {tuple(batch.shape)}"
        )
    return batch.shape[2], batch.shape[3]


def _image_sides(image: np.ndarray) -> tuple[int, int]:
    if image.ndim not in (2, 3) or image.dtype not in (np.uint8, np.uint16) or 0 in image.shape[2:]:
        raise ValueError(f"expected a uint8 or uint16 image H×W or H×W×C, got {image.dtype} {image.shape}")
    return image.shape[0], image.shape[1]


def _check_scale(scale: int) -> None:
    if not isinstance(scale, int | np.integer) or scale < 1:
        raise ValueError(f"a scale must be a whole number of at least 1, got {scale!r}")


def _downscaled(sides: tuple[int, int], scale: int) -> tuple[int, int]:
    _check_scale(scale)
    height, width = sides
    if height % scale or width % scale:
        raise ValueError(f"{_spell(sides)} does not divide by {scale}: crop it with mod_crop first")
    return height // scale, width // scale


def _upscaled(sides: tuple[int, int], scale: int) -> tuple[int, int]:
    _check_scale(scale)
    return sides[0] * scale, sides[1] * scale


def _passes(old: tuple[int, int], new: tuple[int, int]) -> list[tuple[int, int]]:
    """(axis, new size) in MATLAB's order: the smaller factor first, which is also the cheaper way."""
    if min(old + new) < 1:
        raise ValueError(f"cannot resize {_spell(old)} to {_spell(new)}: each side needs at least one pixel")
    return sorted(enumerate(new), key=lambda entry: entry[1] / old[entry[0]])


def _spell(sides: tuple[int, ...]) -> str:
    return f"{sides[0]}×{sides[1]} (height×width)"


def _resize_array_axis(image: np.ndarray, axis: int, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One pass along one axis, block by block of the other axis, rounded to the dtype of `image`."""
    shape = list(image.shape)
    shape[axis] = len(indices)
    result = np.empty(shape, image.dtype)
    source, target = np.moveaxis(image, axis, 0), np.moveaxis(result, axis, 0)
    block = max(1, _BLOCK_VALUES // math.prod(image.shape[2:]))
    for start in range(0, source.shape[1], block):
        part = np.s_[:, start : start + block]
        rows = torch.from_numpy(source[part].astype(np.float64, order="C"))
        sums = _resize_rows(rows, indices, weights)
        target[part] = sums.add_(0.5).floor_().clamp_(0, np.iinfo(image.dtype).max).numpy()
    return result


def _resize_rows(rows: torch.Tensor, indices: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Weighted sums of `rows`, as many as `indices` (see `_taps`) has; all other dimensions are carried along."""
    sums = F.embedding_bag(
        torch.tensor(indices, device=rows.device),
        rows.reshape(rows.shape[0], -1),
        per_sample_weights=torch.tensor(weights, dtype=rows.dtype, device=rows.device),
        mode="sum",
    )
    return sums.reshape(len(indices), *rows.shape[1:])


def _resize_stacked(rows: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Resizes the rows of `count` images that lie one below the other: (count·size)×…"""
    indices, weights = _stacked_taps(count, len(rows) // count, size)
    return F.embedding_bag(indices, rows, per_sample_weights=weights, mode="sum")


@lru_cache(maxsize=64)
def _stacked_taps(count: int, old: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    indices, weights = _taps(old, new, "mirror")
    stacked = indices[None] + old * np.arange(count)[:, None, None]
    repeated = torch.tensor(weights, dtype=torch.float32).repeat(count, 1)
    return torch.from_numpy(stacked.reshape(count * new, -1)), repeated


@lru_cache(maxsize=256)
def _taps(old: int, new: int, border: Border) -> tuple[np.ndarray, np.ndarray]:
    """Which input rows make each of `new` output rows, and how much of each: two arrays, new×taps."""
    shrink = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centres - _CUBIC_RADIUS * shrink).astype(np.int64)
    positions = first[:, None] + np.arange(math.ceil(2 * _CUBIC_RADIUS * shrink) + 2)
    weights = _cubic((centres[:, None] - positions) / shrink)
    weights /= weights.sum(axis=1, keepdims=True)
    used = weights.any(axis=0)
    return _inside(positions[:, used], old, border), weights[:, used]


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, equation 15)."""
    t = np.abs(distance)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


def _inside(positions: np.ndarray, size: int, border: Border) -> np.ndarray:
    """Maps positions beyond the border to the row that stands for them."""
    if border == "replicate":
        return positions.clip(0, size - 1)
    if border == "mirror":
        period = positions % (2 * size)
        return np.minimum(period, 2 * size - 1 - period)
    raise ValueError(f"border must be 'mirror' or 'replicate', got {border!r}")
