"""Upscaling of a whole Photo: colour by the network, transparency by its own path, the rest carried along.

The network works on the values as they are encoded, so the profile that came with them still describes them;
only where that profile is linear in light, which no network has been trained on, they are turned into sRGB's
curve for the network, and back.
Gray stays gray and 16 bits stay 16 bits. Colours count by their opacity, see `opacity`.
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
from ray_sr.upscaling.opacity import alpha_in_bands, beside, by_opacity, calm_colour, resize_alpha, spread_colour
from ray_sr.upscaling.target_size import TargetSize

OnProgress = Callable[[float], None]

_PIECE_BYTES = 16 << 20


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
    colour = _for_network(photo)
    curve = _Curve.of(photo)
    if consistency:
        pixels = _consistent(colour, curve, (height, width), engine, progress)
    else:
        run = engine.run(curve.before(colour), curve.dtype, exact=photo.depth == 16, progress=progress)
        pixels = curve.after(run)
        if pixels.shape[:2] != (height, width):
            pixels = resize_array(pixels, height, width)
    if photo.alpha is None:
        return replace(photo, pixels=pixels)
    if not consistency:
        corrected = by_opacity(iter([pixels]), photo.pixels, colour, photo.alpha, (height, width))
        pixels = np.concatenate(list(corrected))
    return replace(photo, pixels=pixels, alpha=resize_alpha(photo.alpha, height, width))


def _for_network(photo: Photo, in_place: bool = False) -> np.ndarray:
    """The photo's colours as the network sees them; in_place: its own array may be filled under clear pixels."""
    if photo.alpha is None:
        return photo.pixels
    calm = calm_colour(photo.pixels, photo.alpha)
    return spread_colour(calm, photo.alpha, in_place=in_place or calm is not photo.pixels)


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
    colour = _for_network(photo, in_place=True)
    curve = _Curve.of(photo)
    run = engine.bands(curve.before(colour), curve.dtype, exact=photo.depth == 16, progress=progress)
    bands: Iterator[np.ndarray] = map(curve.after, _in_pieces(run))
    larger = photo.height * engine.scale, photo.width * engine.scale
    if larger != size:
        bands = resize_bands(bands, larger, size)
    if photo.alpha is None:
        yield from ((band, None) for band in bands)
        return
    bands = by_opacity(bands, photo.pixels, colour, photo.alpha, size)
    yield from beside(bands, alpha_in_bands(photo.alpha, size))  # type: ignore[misc]


def _in_pieces(bands: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """The same rows in small copies, so that no view keeps a band while the next one is made."""
    for _, band in bands:
        several = max(1, _PIECE_BYTES // band[0].nbytes)
        for top in range(0, len(band), several):
            yield band[top : top + several].copy()
        del band
