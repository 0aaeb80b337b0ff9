"""Whole photos: colour, gray, depth, transparency, profile and metadata come out as they should."""

from __future__ import annotations

import numpy as np
import pytest

from ray_sr.errors import InputError
from ray_sr.images import Photo, decode, encode
from ray_sr.images.resample import resize_array, upscale_array
from ray_sr.models import Bicubic, build_generator
from ray_sr.recipes.networks import CompactSpec, DeblurGANSpec, NetworkSpec
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.opacity import resize_alpha, spread_colour


@pytest.fixture(scope="module")
def bicubic() -> Engine:
    model = Bicubic(4)
    return Engine(model, model.capability, tile=48)


def _noise(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(5).integers(top // 4, top * 3 // 4, (height, width, channels))
    return values.astype(dtype)


def _disc(side: int, soft: bool) -> np.ndarray:
    """A disc's opacity in [0, 1], hard or with a soft edge."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    distance = side / 3 - np.hypot(rows, columns)
    return (distance / 3 + 0.5).clip(0, 1) if soft else (distance > 0).astype(float)


def _over(photo: Photo, background: float) -> np.ndarray:
    """The photo composited on a plain background, values in [0, 1]."""
    top = np.iinfo(photo.pixels.dtype).max
    assert photo.alpha is not None
    opacity = photo.alpha[..., None] / top
    return photo.pixels / top * opacity + background * (1 - opacity)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_and_depth_stay(bicubic: Engine, channels: int, dtype: type) -> None:
    photo = Photo(_noise(50, 61, channels, dtype))
    result = upscale_photo(photo, bicubic)
    assert result.pixels.dtype == dtype
    assert result.pixels.shape == (200, 244, channels)
    assert result.alpha is None
    expected = upscale_array(photo.pixels, 4)
    assert np.abs(result.pixels.astype(int) - expected).max() <= 2


def test_sixteen_bits_are_not_cut_to_eight(bicubic: Engine) -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64, 1) + 1000  # would be 16 levels of 8 bits
    result = upscale_photo(Photo(ramp), bicubic)
    assert len(np.unique(result.pixels)) > 4000


def test_a_neutral_photo_stays_gray_with_a_network_that_tints() -> None:
    generator = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=1, channels=8))).eval()
    engine = Engine(generator, generator.capability)
    assert upscale_photo(Photo(_noise(20, 20, 1)), engine).channels == 1


def test_profile_metadata_and_density_are_carried(bicubic: Engine) -> None:
    photo = Photo(
        _noise(8, 8, 3), icc=b"profile", exif=b"II*\0block", xmp=b"<x/>", density=(300.0, 299.0), warnings=("w",)
    )
    result = upscale_photo(photo, bicubic)
    for name in ("icc", "exif", "xmp", "density", "warnings"):
        assert getattr(result, name) == getattr(photo, name)


@pytest.mark.parametrize(("scale", "size"), [(1, (30, 41)), (1.5, (45, 62)), (3, (90, 123)), (5, (150, 205))])
def test_other_scales_are_resized_from_the_networks_result(
    bicubic: Engine, scale: float, size: tuple[int, int]
) -> None:
    photo = Photo(_noise(30, 41, 3), alpha=_noise(30, 41, 1)[..., 0])
    result = upscale_photo(photo, bicubic, scale=scale)
    assert result.pixels.shape[:2] == size
    assert result.alpha is not None
    assert result.alpha.shape == size
    opaque = Photo(photo.pixels)
    whole = upscale_photo(opaque, bicubic).pixels
    assert np.array_equal(upscale_photo(opaque, bicubic, scale=scale).pixels, resize_array(whole, *size))


def test_a_scale_never_leaves_nothing(bicubic: Engine) -> None:
    assert upscale_photo(Photo(_noise(1, 9, 3)), bicubic, scale=0.1).pixels.shape == (1, 1, 3)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_scales_that_are_none_are_refused(bicubic: Engine, scale: float) -> None:
    with pytest.raises(InputError, match="scale must be a positive number"):
        upscale_photo(Photo(_noise(4, 4, 3)), bicubic, scale=scale)


def test_deblurring_keeps_the_size() -> None:
    spec = DeblurGANSpec(blocks=1, channels=8)
    generator = build_generator(NetworkSpec(scale=1, generator=spec)).eval()
    photo = Photo(_noise(33, 18, 3), alpha=(_disc(33, True)[:, :18] * 255).astype(np.uint8))
    result = upscale_photo(photo, Engine(generator, generator.capability))
    assert result.pixels.shape == photo.pixels.shape
    assert np.array_equal(result.alpha, photo.alpha)


def test_progress_ends_at_one(bicubic: Engine) -> None:
    shares: list[float] = []
    upscale_photo(Photo(_noise(100, 120, 3)), bicubic, progress=shares.append)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


# Transparency ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("colour", "hidden"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0)])
def test_hidden_colour_makes_no_fringe(
    bicubic: Engine, dtype: type, soft: bool, colour: float, hidden: float
) -> None:
    """A disc of one colour stays of one colour, on its own background and in every visible pixel."""
    top = np.iinfo(dtype).max
    alpha = np.rint(_disc(40, soft) * top).astype(dtype)
    pixels = np.where(alpha[..., None] > 0, round(colour * top), round(hidden * top))
    result = upscale_photo(Photo(pixels.repeat(3, axis=2).astype(dtype), alpha=alpha), bicubic)
    # At a soft edge premultiplied bicubic, which this is, overshoots by so much.
    near = (4 if soft else 2) / 255
    assert np.abs(_over(result, colour) - colour).max() < near
    for background in (0.0, 1.0):
        levels = _over(result, background)
        low, high = sorted((colour, background))
        assert levels.min() >= low - near
        assert levels.max() <= high + near


def test_constant_and_two_valued_transparency_stay_so(bicubic: Engine) -> None:
    pixels = _noise(30, 30, 3)
    for level in (0, 7, 255):
        result = upscale_photo(Photo(pixels, alpha=np.full((30, 30), level, np.uint8)), bicubic)
        assert (result.alpha == level).all()
        assert np.array_equal(result.pixels, upscale_photo(Photo(pixels), bicubic).pixels)
    mask = (_disc(30, False) * 255).astype(np.uint8)
    result = upscale_photo(Photo(pixels, alpha=mask), bicubic)
    assert set(np.unique(result.alpha)) == {0, 255}
    assert abs((result.alpha > 0).mean() - (mask > 0).mean()) < 0.01


def test_soft_transparency_keeps_its_clear_and_its_opaque_parts() -> None:
    alpha = np.rint(_disc(40, True) * 255).astype(np.uint8)
    result = resize_alpha(alpha, 160, 160)
    assert len(np.unique(result)) > 20
    reach = 3  # input pixels that the cubic kernel sees
    for level in (0, 255):
        for row, column in np.argwhere(alpha == level):
            around = alpha[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
            if (around == level).all():
                assert (result[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] == level).all()


def test_colour_spreads_from_the_nearest_visible_pixels() -> None:
    pixels = np.zeros((37, 50, 3), np.uint8)
    pixels[:, :25], pixels[:, 25:] = (200, 10, 10), (10, 10, 200)
    visible = np.zeros((37, 50), np.uint8)
    visible[10:20, 4:6], visible[10:20, 44:46] = 255, 1
    hidden = pixels.copy()
    hidden[visible == 0] = 99
    result = spread_colour(hidden, visible)
    assert np.array_equal(result[visible > 0], pixels[visible > 0])
    assert (result[8:22, 2:8] == (200, 10, 10)).all()
    assert (result[8:22, 42:48] == (10, 10, 200)).all()
    assert not (result == 99).any()


def test_colour_is_left_alone_where_nothing_or_all_is_visible() -> None:
    pixels = _noise(9, 9, 3)
    for level in (0, 1, 255):
        assert np.array_equal(spread_colour(pixels, np.full((9, 9), level, np.uint8)), pixels)


def test_the_same_bytes_give_the_same_bytes(bicubic: Engine) -> None:
    data = encode(Photo(_noise(60, 60, 3), alpha=_noise(60, 60, 1)[..., 0]), "png")
    first, second = (encode(upscale_photo(decode(data), bicubic), "png") for _ in range(2))
    assert first == second
