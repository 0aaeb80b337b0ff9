"""Upscaling of a whole Photo: colour by the network, transparency by its own path, the rest carried along.

The network works on the values as they are encoded, so the profile that came with them still describes them;
only where that profile is linear in light, which no network has been trained on, they are turned into sRGB's
curve for the network, and back.
Gray stays gray and 16 bits stay 16 bits. Colour is first spread under the fully transparent pixels, so that
what lies hidden there (often black) does not bleed into the visible edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ray_sr.errors import InputError
from ray_sr.images import Photo
from ray_sr.images.icc import icc_is_linear
from ray_sr.images.resample import resize_array, resize_bands, resize_to
from ray_sr.upscaling.consistency import back_project
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.target_size import TargetSize

OnProgress = Callable[[float], None]

_PIECE_BYTES = 16 << 20
_ALPHA_ROWS = 32
_STRIP_ROWS = 256
_STRIP_HALVINGS = 3  # _STRIP_ROWS is a multiple of 2 to this power


def upscale_photo(
    photo: Photo,
    engine: Engine,
    *,
    scale: float | None = None,
    wanted: TargetSize | None = None,
    consistency: bool = False,
    progress: OnProgress | None = None,
) -> Photo:
    """The photo enlarged `scale` times, by default as much as the engine's network does, or to what is `wanted`.

    For another size the network's result is resized, antialiased. Sides are rounded to whole pixels, at
    least 1. Depth, channels, profile and metadata stay. consistency: the result, made smaller again, equals
    the photo (see `back_project`). progress: called with the share done, in [0, 1].
    Raises InputError for a scale that is not positive and for consistency without enlargement, and what
    `Engine.bands` raises.
    """
    height, width = (wanted or TargetSize(scale)).of(photo, engine.scale)
    colour = photo.pixels if photo.alpha is None else spread_colour(photo.pixels, photo.alpha)
    curve = _Curve.of(photo)
    if consistency:
        pixels = _consistent(colour, curve, (height, width), engine, progress)
    else:
        run = engine.run(curve.before(colour), curve.dtype, exact=photo.depth == 16, progress=progress)
        pixels = curve.after(run)
        if pixels.shape[:2] != (height, width):
            pixels = resize_array(pixels, height, width)
    alpha = None if photo.alpha is None else resize_alpha(photo.alpha, height, width)
    return replace(photo, pixels=pixels, alpha=alpha)


@dataclass(frozen=True)
class _Curve:
    """What lies between a photo's values and the network's: nothing, or where they are linear, sRGB's curve.

    depth: the photo's type. dtype: that of the network's results before `after`.
    """

    depth: np.dtype
    linear: bool

    @classmethod
    def of(cls, photo: Photo) -> _Curve:
        return cls(photo.pixels.dtype, icc_is_linear(photo.icc))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.linear else self.depth

    def before(self, pixels: np.ndarray) -> np.ndarray:
        """Values for the network: float32 in [0, 1] where the photo is linear (IEC 61966-2-1, section 5.3)."""
        if not self.linear:
            return pixels
        light = pixels / np.float32(np.iinfo(self.depth).max)
        return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)

    def to_light(self, values: np.ndarray) -> np.ndarray:
        """float32 results of the network as the photo has them (IEC 61966-2-1, section 5.2)."""
        if not self.linear:
            return values
        values = values.clip(0, 1)
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)

    def after(self, values: np.ndarray) -> np.ndarray:
        """Results of the network, of `dtype`, as pixels."""
        if not self.linear:
            return values
        return np.rint(self.to_light(values) * np.iinfo(self.depth).max).astype(self.depth)


def _consistent(
    colour: np.ndarray, curve: _Curve, size: tuple[int, int], engine: Engine, progress: OnProgress | None
) -> np.ndarray:
    check_enlarges(colour, size)
    exact = colour.dtype == np.uint16
    result = curve.to_light(engine.run(curve.before(colour), np.float32, exact=exact, progress=progress))
    if result.shape[:2] != size:
        batch = torch.from_numpy(result).permute(2, 0, 1)[None]
        result = resize_to(batch, *size)[0].permute(1, 2, 0).numpy()
    levels = np.iinfo(colour.dtype).max
    return np.rint(back_project(result, colour) * levels).astype(colour.dtype)


def check_enlarges(picture: np.ndarray, size: tuple[int, int]) -> None:
    """Raises InputError where a result of this size cannot be held against its picture."""
    height, width = picture.shape[:2]
    if size[0] < height or size[1] < width or size == (height, width):
        raise InputError(
            f"{width}x{height} to {size[1]}x{size[0]} is no enlargement, which consistency is measured by: "
            "give a larger scale or leave it out"
        )


def side_by_side(photo: Photo, result: Photo) -> Photo:
    """The photo, enlarged bicubically to the size of its result, and the result to the right of it."""
    size = result.height, result.width
    alpha = None
    if photo.alpha is not None and result.alpha is not None:
        alpha = np.concatenate([resize_alpha(photo.alpha, *size), result.alpha], axis=1)
    pixels = np.concatenate([resize_array(photo.pixels, *size), result.pixels], axis=1)
    return replace(result, pixels=pixels, alpha=alpha)


def upscale_in_bands(
    photo: Photo, engine: Engine, size: tuple[int, int], progress: OnProgress | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """What `upscale_photo` gives for this (height, width), in bands of rows from the top: colour and opacity.

    Beside the photo, little more than a row of tiles is in memory: where colour is spread under transparent
    pixels, that is done in the photo's own array.
    """
    colour = photo.pixels if photo.alpha is None else spread_colour(photo.pixels, photo.alpha, in_place=True)
    curve = _Curve.of(photo)
    run = engine.bands(curve.before(colour), curve.dtype, exact=photo.depth == 16, progress=progress)
    bands: Iterator[np.ndarray] = map(curve.after, _in_pieces(run))
    larger = photo.height * engine.scale, photo.width * engine.scale
    if larger != size:
        bands = resize_bands(bands, larger, size)
    if photo.alpha is None:
        yield from ((band, None) for band in bands)
        return
    yield from _side_by_side(bands, _alpha_in_bands(photo.alpha, size))


def _in_pieces(bands: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """The same rows in small copies, so that no view keeps a band while the next one is made."""
    for _, band in bands:
        several = max(1, _PIECE_BYTES // band[0].nbytes)
        for top in range(0, len(band), several):
            yield band[top : top + several].copy()
        del band


def _side_by_side(
    first: Iterator[np.ndarray], second: Iterator[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The bands of `first`, each with the same rows of `second`, whose bands are others."""
    held: list[np.ndarray] = []
    for band in first:
        while sum(map(len, held)) < len(band):
            held.append(next(second))
        rows = np.concatenate(held)
        held = [rows[len(band) :]]
        yield band, rows[: len(band)]


def _alpha_in_bands(alpha: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
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


def _is_mask(alpha: np.ndarray) -> bool:
    return bool(((alpha == 0) | (alpha == np.iinfo(alpha.dtype).max)).all())


def _to_mask(alpha: np.ndarray) -> np.ndarray:
    opaque = np.iinfo(alpha.dtype).max
    return np.where(alpha > opaque // 2, opaque, 0).astype(alpha.dtype)


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
