from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_sr.degradations import degrade
from ray_sr.degradations.compression import compress, jpeg, webp
from ray_sr.errors import InputError
from ray_sr.recipes.degradations import CompressionSpec
from tests.degradations.pictures import generators, picture


def _stored(pixels: np.ndarray, codec: str, **options: object) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(pixels).save(file, codec, **options)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
def test_jpeg_is_pillows_at_that_quality(quality: int) -> None:
    pixels = picture(37, 51)
    assert np.array_equal(jpeg(pixels, quality), _stored(pixels, "JPEG", quality=quality, subsampling="4:2:0"))


@pytest.mark.parametrize("quality", [1, 40, 100])
def test_webp_is_pillows_at_that_quality(quality: int) -> None:
    pixels = picture(37, 51)
    assert np.array_equal(webp(pixels, quality), _stored(pixels, "WEBP", quality=quality))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_every_quality_of_the_range_occurs_and_no_other(kind: str) -> None:
    pixels = picture(32, 32)
    recode = {"jpeg": jpeg, "webp": webp}[kind]
    qualities = {recode(pixels, quality).tobytes(): quality for quality in range(20, 61)}
    assert len(qualities) > 30
    spec = CompressionSpec.model_validate({"kind": kind, "quality": (40, 42)})
    results = degrade(np.stack([pixels] * 40), [spec], 1, generators(range(40)))
    assert {qualities[result.tobytes()] for result in results} == {40, 41, 42}


def test_better_quality_is_closer() -> None:
    pixels = picture(64, 64)
    for recode in (jpeg, webp):
        errors = [np.abs(recode(pixels, quality) - pixels.astype(int)).mean() for quality in (5, 40, 95)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 2 * errors[2]


def test_values_beyond_the_range_are_clamped() -> None:
    image = np.ones((16, 16, 3), np.float32) * np.array([-0.3, 0.5, 1.4], np.float32)
    spec = CompressionSpec(quality=(100, 100))
    result = compress(image, spec, np.random.default_rng(0))
    assert np.allclose(result, image.clip(0, 1), atol=0.02)


def test_photos_too_long_for_webp_are_an_error() -> None:
    with pytest.raises(InputError, match="webp holds at most 16383 px a side, the photo has 16384"):
        webp(np.zeros((1, 16384, 3), np.uint8), 80)
