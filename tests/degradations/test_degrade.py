from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from ray_sr.degradations import degrade
from ray_sr.degradations.kernels import gaussian
from ray_sr.errors import InputError, RecipeError
from ray_sr.images import resample
from ray_sr.recipes.degradations import (
    BlurSpec,
    CompressionSpec,
    DegradationSpec,
    DownscaleSpec,
    MotionBlurSpec,
    NoiseSpec,
    PairsSpec,
    SecondOrderSpec,
    SharpenSpec,
)
from tests.degradations.pictures import batch, generators, picture

ALL_KERNELS = BlurSpec(
    probability=0.7,
    kernels={"isotropic": 1, "generalised_anisotropic": 1, "plateau_isotropic": 1, "sinc": 1},
)
PIPELINES: dict[str, tuple[int, list[DegradationSpec]]] = {
    "bicubic": (4, [DownscaleSpec()]),
    "bilinear": (2, [DownscaleSpec(method="bilinear")]),
    "area": (2, [DownscaleSpec(method="area")]),
    "classical": (4, [ALL_KERNELS, DownscaleSpec(), NoiseSpec(probability=0.8), CompressionSpec()]),
    "webp": (2, [DownscaleSpec(), CompressionSpec(kind="webp", probability=0.5)]),
    "second order": (4, [SecondOrderSpec()]),
    "sharpened second order": (4, [SharpenSpec(), SecondOrderSpec()]),
    "weak second order": (4, [SecondOrderSpec(strength=0.4)]),
    "motion": (1, [MotionBlurSpec(size=15, gamma=2.2), NoiseSpec()]),
}
every_pipeline = pytest.mark.parametrize(("scale", "steps"), PIPELINES.values(), ids=PIPELINES.keys())


@every_pipeline
def test_size_and_determinism(scale: int, steps: list[DegradationSpec]) -> None:
    hr = batch(3)
    hr.setflags(write=False)  # as Ray Data hands them out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = degrade(hr, steps, scale, generators(range(3)))
    assert once.shape == (3, 48 // scale, 64 // scale, 3)
    assert once.dtype == np.uint8
    assert np.array_equal(once, degrade(hr, steps, scale, generators(range(3))))


@every_pipeline
def test_pixels_do_not_depend_on_batch_mates(scale: int, steps: list[DegradationSpec]) -> None:
    rows = [*range(70)]  # more than are degraded in one go
    hr = batch(len(rows))
    together = degrade(hr, steps, scale, generators(rows))
    backwards = degrade(hr[::-1], steps, scale, generators(rows[::-1]))[::-1]
    alone = np.concatenate([degrade(hr[row : row + 1], steps, scale, generators([row])) for row in rows])
    assert np.array_equal(together, backwards)
    assert np.array_equal(together, alone)


@every_pipeline
def test_pixels_do_not_depend_on_workers(scale: int, steps: list[DegradationSpec]) -> None:
    rows = range(16)
    hr = batch(16)
    with ThreadPoolExecutor(16) as workers:
        parts = workers.map(lambda row: degrade(hr[row : row + 1], steps, scale, generators([row])), rows)
        assert np.array_equal(np.concatenate([*parts]), degrade(hr, steps, scale, generators(rows)))


@pytest.mark.slow
def test_pixels_do_not_depend_on_torch_threads() -> None:
    hr = batch(10, 180, 252)  # enough pixels for torch to share them out; plenty of odd sizes on the way
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(
                [degrade(hr, steps, scale, generators(range(10))) for scale, steps in PIPELINES.values()]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["classical", "second order", "motion"])
def test_seeds_and_rows_differ(name: str) -> None:
    scale, steps = PIPELINES[name]
    same_picture = np.stack([picture(48, 64)] * 6)
    variants = degrade(same_picture, steps, scale, generators(range(6)))
    assert len({variant.tobytes() for variant in variants}) == 6


def test_bicubic_is_the_rounded_float_form() -> None:
    hr = batch(5, 96, 96)
    exact = resample.downscale(torch.from_numpy(hr.transpose(0, 3, 1, 2).astype(np.float64)), 4)
    expected = np.floor(exact.numpy() + 0.5).clip(0, 255).transpose(0, 2, 3, 1)
    lr = degrade(hr, [DownscaleSpec()], 4, generators(range(5)))
    tie = np.abs(exact.numpy() % 1 - 0.5).transpose(0, 2, 3, 1) < 1e-3  # may fall to either side in float32
    assert np.array_equal(lr[~tie], expected[~tie])
    assert tie.mean() < 0.05


def test_area_is_the_mean_of_each_block() -> None:
    hr = batch(2)
    blocks = hr.reshape(2, 12, 4, 16, 4, 3).astype(int).sum(axis=(2, 4))
    lr = degrade(hr, [DownscaleSpec(method="area")], 4, generators([0, 1]))
    assert np.abs(lr - blocks / 16).max() <= 0.5 + 1e-4


def test_bilinear_is_an_antialiased_triangle() -> None:
    hr = batch(2)
    lr = degrade(hr, [DownscaleSpec(method="bilinear")], 4, generators([0, 1]))
    for image, small in zip(hr, lr, strict=True):
        reference = np.asarray(Image.fromarray(image).resize((16, 12), Image.Resampling.BILINEAR))
        assert np.abs(reference.astype(int) - small).max() <= 1


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_flat_picture_stays_flat(method: str, level: int) -> None:
    hr = np.full((1, 32, 32, 3), level, np.uint8)
    steps: list[DegradationSpec] = [
        ALL_KERNELS,
        DownscaleSpec.model_validate({"method": method}),
        MotionBlurSpec(size=9),
    ]
    assert np.all(degrade(hr, steps, 4, generators([1])) == level)


def test_values_stay_float_between_steps() -> None:
    """One rounding, at the end, is never off by more than half a level; a second one would be."""
    hr = picture(48, 64)
    kernel = gaussian(9, (1.5, 1.5))
    blurred = [scipy.ndimage.convolve(channel, kernel, mode="mirror") for channel in hr.T.astype(float)]
    expected = np.stack(blurred).T.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    steps: list[DegradationSpec] = [
        BlurSpec(size=(9, 9), sigma=(1.5, 1.5)),
        DownscaleSpec(method="area"),
        NoiseSpec(sigma=(0, 0), poisson_scale=(0, 0)),
    ]
    assert np.abs(degrade(hr[None], steps, 2, generators([0]))[0] - expected).max() <= 0.5 + 1e-3


def test_probability_zero_changes_nothing() -> None:
    hr = batch(2)
    steps: list[DegradationSpec] = [
        BlurSpec(probability=0),
        NoiseSpec(probability=0),
        CompressionSpec(probability=0),
        MotionBlurSpec(probability=0),
    ]
    assert np.array_equal(degrade(hr, steps, 1, generators([0, 1])), hr)


def test_whole_photo_of_odd_proportions() -> None:
    hr = picture(4 * 33, 4 * 71)[None]
    for steps in ([DownscaleSpec()], [SecondOrderSpec()]):
        assert degrade(hr, steps, 4, generators([0])).shape == (1, 33, 71, 3)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 64), (8, 4)])
def test_pictures_smaller_than_the_kernels(height: int, width: int) -> None:
    hr = picture(height, width)[None]
    for steps in ([SecondOrderSpec()], PIPELINES["classical"][1]):
        assert degrade(hr, steps, 4, generators([3])).shape == (1, height // 4, width // 4, 3)


def test_pairs_are_not_made() -> None:
    with pytest.raises(RecipeError, match="--inputs"):
        degrade(batch(1), [PairsSpec()], 1, generators([0]))


def test_steps_that_do_not_shrink_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"\[blur, noise\] does not shrink by 4"):
        degrade(batch(1), [BlurSpec(), NoiseSpec()], 4, generators([0]))


def test_sides_must_be_multiples_of_the_scale() -> None:
    with pytest.raises(InputError, match="64×50 px cannot be divided by 4"):
        degrade(batch(1, 50, 64), [DownscaleSpec()], 4, generators([0]))


@pytest.mark.parametrize(
    ("hr", "count"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), 1),
        (np.zeros((8, 8, 3), np.uint8), 8),
        (np.zeros((1, 8, 8, 1), np.uint8), 1),
        (np.zeros((0, 8, 8, 3), np.uint8), 0),
        (np.zeros((2, 8, 8, 3), np.uint8), 1),
    ],
)
def test_wrong_arrays_are_an_error(hr: np.ndarray, count: int) -> None:
    with pytest.raises(ValueError, match=r"expected uint8|need as many generators"):
        degrade(hr, [NoiseSpec(), DownscaleSpec()], 4, generators(range(count)))
