"""Upscaling of a whole Photo: colour by the network, transparency by its own path, the rest carried along.

The network works on the values as they are encoded, so the profile that came with them still describes them.
Gray stays gray and 16 bits stay 16 bits. Colour is first spread under the fully transparent pixels, so that
what lies hidden there (often black) does not bleed into the visible edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ray_sr.errors import InputError
from ray_sr.images import Photo
from ray_sr.resample import resize_array
from ray_sr.upscaling.engine import Engine


def upscale_photo(
    photo: Photo,
    engine: Engine,
    *,
    scale: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Photo:
    """The photo enlarged `scale` times, by default as much as the engine's network does.

    For another scale the network's result is resized, antialiased. Sides are rounded to whole pixels, at
    least 1. Depth, channels, profile and metadata stay. progress: called with the share done, in [0, 1].
    Raises InputError for a scale that is not positive, and what `Engine.bands` raises.
    """
    height, width = target_size(photo, engine.scale if scale is None else scale)
    colour = photo.pixels if photo.alpha is None else spread_colour(photo.pixels, photo.alpha)
    pixels = engine.run(colour, photo.pixels.dtype, progress=progress)
    alpha = None if photo.alpha is None else resize_alpha(photo.alpha, height, width)
    if pixels.shape[:2] != (height, width):
        pixels = resize_array(pixels, height, width)
    return replace(photo, pixels=pixels, alpha=alpha)


def target_size(photo: Photo, scale: float) -> tuple[int, int]:
    """Height and width of the photo enlarged `scale` times. Raises InputError for a scale that is none."""
    if not 0 < scale < float("inf"):
        raise InputError(f"cannot enlarge {scale:g} times: the scale must be a positive number")
    return max(1, round(photo.height * scale)), max(1, round(photo.width * scale))


def resize_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resize of transparency, H×W. All of one value stays so, and two-valued (mask) stays two-valued."""
    opaque = np.iinfo(alpha.dtype).max
    if (alpha == alpha.flat[0]).all():
        return np.full((height, width), alpha.flat[0], alpha.dtype)
    resized = resize_array(alpha, height, width)
    if ((alpha == 0) | (alpha == opaque)).all():
        return np.where(resized > opaque // 2, opaque, 0).astype(alpha.dtype)
    return resized


def spread_colour(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """H×W×C with every fully transparent pixel given a mean colour of the visible pixels around it.

    Visible pixels stay as they are. The mean, weighted by opacity, is taken over the smallest of the squares
    of 2, 4, 8, … pixels which holds a visible one (pull-push: Gortler et al., The Lumigraph, 1996).
    A photo without visible or without transparent pixels is returned as it is.
    """
    hidden = alpha == 0
    if hidden.all() or not hidden.any():
        return pixels
    weight = alpha[..., None].astype(np.float32)
    filled = _fill(pixels * weight, weight)
    return np.where(hidden[..., None], np.rint(filled), pixels).astype(pixels.dtype)


def _fill(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colour / weight, and where the weight is 0 what the same picture at half the size has there."""
    known = weight > 0
    own = colour / np.where(known, weight, 1)
    if known.all():
        return own
    height, width = weight.shape[:2]
    coarse = _fill(_halved(colour), _halved(weight))
    coarse = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(known, own, coarse)


def _halved(values: np.ndarray) -> np.ndarray:
    """Sums of squares of 2×2; an odd last row or column counts alone."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).sum(axis=(1, 3))
