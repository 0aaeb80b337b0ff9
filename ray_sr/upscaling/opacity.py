"""Transparency: its own resizing, and colours that count by their opacity.

What lies under transparent pixels (often black) must not bleed into the visible edge. Networks see each photo with
the colours of partly transparent pixels mixed, and colour spread under fully transparent ones; then the result is
corrected by what premultiplied arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import uniform_filter

from ray_sr.images.resample import resize_array, resize_bands

_ALPHA_ROWS = 32
_STRIP_ROWS = 256
_STRIP_HALVINGS = 3  # _STRIP_ROWS is a multiple of 2 to this power
_REACH = 3  # pixels on each side over which colours are mixed by opacity
_SEEN = 257  # of 65535: up to 1 of 255 no colour is seen, and 16 bits of premultiplied colour hold too little of it


def beside(first: Iterator[np.ndarray], *others: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
    """The bands of `first`, each with the same rows of the others, whose bands are of other heights."""
    held: list[list[np.ndarray]] = [[] for _ in others]
    for band in first:
        rows = [band]
        for waiting, other in zip(held, others, strict=True):
            while sum(map(len, waiting)) < len(band):
                waiting.append(next(other))
            there = np.concatenate(waiting)
            waiting[:] = [there[len(band) :]]
            rows.append(there[: len(band)])
        yield tuple(rows)


def by_opacity(
    bands: Iterator[np.ndarray], pixels: np.ndarray, spread: np.ndarray, alpha: np.ndarray, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The network's result for `spread`, band by band, with colours weighted by their opacity.

    pixels: the photo's own colours; spread: those that the network saw; size: (height, width) of the result.
    What premultiplied bicubic resizing gives for the first (Porter and Duff, Compositing digital images, 1984),
    less what plain bicubic gives for the second, is added: where opacity is even or a mask that is nothing, and for
    bicubic itself the sum is the premultiplied result.
    """
    if not _is_partial(alpha):
        yield from bands
        return
    old, top = (alpha.shape[0], alpha.shape[1]), int(np.iinfo(spread.dtype).max)
    tops = range(0, old[0], _ALPHA_ROWS)
    premultiplied = (_premultiplied(pixels[at : at + _ALPHA_ROWS], alpha[at : at + _ALPHA_ROWS]) for at in tops)
    plain = (spread[at : at + _ALPHA_ROWS] for at in tops)
    weighted = resize_bands(premultiplied, old, size)
    small = (band[at : at + _ALPHA_ROWS] for band in bands for at in range(0, len(band), _ALPHA_ROWS))
    for band, known, bicubic in beside(small, weighted, resize_bands(plain, old, size)):
        weight = known[..., -1:].astype(np.float32)
        colour = known[..., :-1] * (top / np.maximum(weight, 1))
        shift = colour - bicubic
        yield np.rint(band + np.where(weight > _SEEN, shift, 0)).clip(0, top).astype(band.dtype)


def _premultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour times opacity, and opacity, as uint16 H×W×(C+1) of full range."""
    top = float(np.iinfo(alpha.dtype).max)
    weight = alpha[..., None] / top
    return np.rint(np.concatenate([pixels / top * weight, weight], axis=2) * 65535).astype(np.uint16)


def alpha_in_bands(alpha: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """`resize_alpha` in bands."""
    strips = [alpha[top : top + _ALPHA_ROWS] for top in range(0, len(alpha), _ALPHA_ROWS)]
    first = alpha.flat[0]
    if all((strip == first).all() for strip in strips):
        tops = range(0, size[0], _ALPHA_ROWS)
        yield from (np.full((min(_ALPHA_ROWS, size[0] - top), size[1]), first, alpha.dtype) for top in tops)
        return
    masked = all(_is_mask(strip) for strip in strips)
    for band in resize_bands(strips, (alpha.shape[0], alpha.shape[1]), size):
        yield _to_mask(band) if masked else band


def resize_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resize of transparency, H×W. All of one value stays so, and two-valued (mask) stays two-valued."""
    if (alpha == alpha.flat[0]).all():
        return np.full((height, width), alpha.flat[0], alpha.dtype)
    resized = resize_array(alpha, height, width)
    return _to_mask(resized) if _is_mask(alpha) else resized


def _is_partial(alpha: np.ndarray) -> bool:
    """Whether the opacity changes, and not only between none and all."""
    return not (_is_mask(alpha) or bool((alpha == alpha.flat[0]).all()))


def _is_mask(alpha: np.ndarray) -> bool:
    return bool(((alpha == 0) | (alpha == np.iinfo(alpha.dtype).max)).all())


def _to_mask(alpha: np.ndarray) -> np.ndarray:
    opaque = np.iinfo(alpha.dtype).max
    return np.where(alpha > opaque // 2, opaque, 0).astype(alpha.dtype)


def calm_colour(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """H×W×C in which the less a pixel is seen, the more of its colour is the mean around it, by opacity.

    A network would take black under nearly clear pixels for a line. Opaque pixels stay as they are, and so do
    fully transparent ones, see `spread_colour`; a photo of one opacity or with a mask is returned as it is.
    """
    top = np.iinfo(alpha.dtype).max
    if not _is_partial(alpha):
        return pixels
    result = pixels.copy()
    for start in range(0, len(alpha), _STRIP_ROWS):
        rows = np.s_[max(0, start - _REACH) : start + _STRIP_ROWS + _REACH]
        inner = np.s_[start - rows.start : start - rows.start + _STRIP_ROWS]
        weight = alpha[rows, :, None].astype(np.float32) / top
        size = (2 * _REACH + 1, 2 * _REACH + 1, 1)
        colour = uniform_filter(pixels[rows] * weight, size, mode="reflect")
        around = colour / np.maximum(uniform_filter(weight, size, mode="reflect"), 1e-6)
        mixed = pixels[rows] * weight + around * (1 - weight)
        partial = (weight > 0) & (weight < 1)
        chosen = np.where(partial, np.rint(mixed), pixels[rows])[inner]
        result[start : start + _STRIP_ROWS] = chosen.astype(pixels.dtype)
    return result


def spread_colour(pixels: np.ndarray, alpha: np.ndarray, *, in_place: bool = False) -> np.ndarray:
    """H×W×C with every fully transparent pixel given a mean colour of the visible pixels around it.

    Visible pixels stay as they are. The mean, weighted by opacity, is taken over the smallest of the squares
    of 2, 4, 8, … pixels which holds a visible one (pull-push: Gortler et al., The Lumigraph, 1996).
    A photo without visible or without transparent pixels is returned as it is. Strip by strip, so that the
    sums in float32 are never there for the whole photo; in_place: nor is a copy, where `pixels` can be written.
    """
    hidden = alpha == 0
    if hidden.all() or not hidden.any():
        return pixels
    strips = [slice(top, top + _STRIP_ROWS) for top in range(0, len(alpha), _STRIP_ROWS)]
    sums = [_coarse(pixels[rows], alpha[rows]) for rows in strips]
    colours, weights = zip(*sums, strict=True)
    coarse = _fill(np.concatenate(colours), np.concatenate(weights))
    result = pixels if in_place and pixels.flags.writeable else pixels.copy()
    for rows in strips:
        below = coarse[rows.start >> _STRIP_HALVINGS : rows.stop >> _STRIP_HALVINGS]
        filled = np.rint(_fill(*_sums(pixels[rows], alpha[rows]), _STRIP_HALVINGS, below))
        np.copyto(result[rows], filled.astype(pixels.dtype), where=hidden[rows, :, None])
    return result


def _sums(pixels: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour times opacity, and opacity."""
    weight = alpha[..., None].astype(np.float32)
    return pixels * weight, weight


def _coarse(pixels: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_sums` of a strip, halved as often as its rows allow."""
    colour, weight = _sums(pixels, alpha)
    for _ in range(_STRIP_HALVINGS):
        colour, weight = _halved(colour), _halved(weight)
    return colour, weight


def _fill(
    colour: np.ndarray, weight: np.ndarray, halvings: int = -1, below: np.ndarray | None = None
) -> np.ndarray:
    """Colour / weight, and where the weight is 0 what the same picture at half the size has there.

    `below`: the filled picture after so many `halvings`, where it is known.
    """
    if halvings == 0 and below is not None:
        return below
    known = weight > 0
    own = colour / np.where(known, weight, 1)
    if known.all():
        return own
    height, width = weight.shape[:2]
    coarse = _fill(_halved(colour), _halved(weight), halvings - 1, below)
    coarse = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(known, own, coarse)


def _halved(values: np.ndarray) -> np.ndarray:
    """Sums of squares of 2×2; an odd last row or column counts alone."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).sum(axis=(1, 3))
