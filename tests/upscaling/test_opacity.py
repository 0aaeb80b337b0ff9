"""Colours count by their opacity: sprites against premultiplied bicubic, computed apart."""

from __future__ import annotations

import numpy as np
import pytest

from ray_sr.images import Photo
from ray_sr.images.resample import resize_array
from ray_sr.models import Bicubic, build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.opacity import calm_colour
from ray_sr.upscaling.photos import upscale_in_bands


def sprite(kind: str, dtype: type = np.uint8) -> Photo:
    """A soft disc: black under opacity up to 12 or 25 of 255, colours times opacity, or noise under all of it."""
    rows, columns = np.mgrid[:60, :52]
    opacity = ((22 - np.hypot(rows - 30, columns - 26)) / 5 + 0.5).clip(0, 1)
    colour = np.stack([0.9 + 0 * rows, 0.3 + rows / 120, 0.2 + columns / 90], axis=2)
    if kind == "premultiplied":
        colour = colour * opacity[..., None]
    elif kind == "noise":
        colour = np.random.default_rng(2).uniform(0.2, 0.8, colour.shape)
    else:
        colour[opacity <= int(kind) / 255] = 0
    top = np.iinfo(dtype).max
    return Photo(np.rint(colour * top).astype(dtype), np.rint(opacity * top).astype(dtype))


def premultiplied_bicubic(photo: Photo, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour times opacity, and opacity, in [0, 1]."""
    assert photo.alpha is not None
    top = np.iinfo(photo.pixels.dtype).max
    opacity = photo.alpha[..., None] / top
    both = np.rint(np.concatenate([photo.pixels / top * opacity, opacity], axis=2) * 65535).astype(np.uint16)
    large = resize_array(both, photo.height * scale, photo.width * scale) / 65535
    return large[..., :3], large[..., 3:]


def farthest(photo: Photo, result: Photo, scale: int) -> float:
    """The largest difference of levels (of 255) from premultiplied bicubic, over white, black and gray."""
    assert result.alpha is not None
    top = np.iinfo(result.pixels.dtype).max
    colour, opacity = premultiplied_bicubic(photo, scale)
    own = result.alpha[..., None] / top
    differences = [
        np.abs(result.pixels / top * own + ground * (1 - own) - colour - ground * (1 - opacity)).max()
        for ground in (0.0, 0.5, 1.0)
    ]
    return float(255 * max(differences))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("kind", ["0", "12", "25", "premultiplied"])
def test_bicubic_is_premultiplied_bicubic(kind: str, scale: int, dtype: type) -> None:
    photo, model = sprite(kind, dtype), Bicubic(scale)
    assert farthest(photo, upscale_photo(photo, Engine(model, model.capability, tile=48)), scale) <= 4


def test_a_network_sees_no_black_line_under_nearly_clear_pixels() -> None:
    for kind in ("12", "25"):
        photo, clean = sprite(kind), sprite("0")
        assert photo.alpha is not None
        faint = (photo.alpha > 0) & (photo.alpha < int(kind))
        assert photo.pixels[faint].max() == 0
        calm = calm_colour(photo.pixels, photo.alpha)
        assert np.abs(calm[faint].astype(int) - clean.pixels[faint]).max() < 45
        opaque = photo.alpha == 255
        assert np.array_equal(calm[opaque], photo.pixels[opaque])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_are_the_whole(dtype: type) -> None:
    spec = NetworkSpec(scale=2, generator=CompactSpec(convs=1, channels=8))
    generator = build_generator(spec).eval()
    engine = Engine(generator, generator.capability, tile=20)
    for kind in ("25", "premultiplied", "noise"):
        photo = sprite(kind, dtype)
        for size in ((120, 104), (75, 65)):
            whole = upscale_photo(photo, engine, scale=size[0] / 60)
            bands = list(upscale_in_bands(sprite(kind, dtype), engine, size))
            assert np.array_equal(np.concatenate([colour for colour, _ in bands]), whole.pixels)
            assert np.array_equal(np.concatenate([alpha for _, alpha in bands if alpha is not None]), whole.alpha)
