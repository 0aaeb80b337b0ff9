from __future__ import annotations

import numpy as np
import pytest

from ray_sr.degradations import degrade
from ray_sr.degradations.preview import contact_sheet
from ray_sr.errors import RecipeError
from ray_sr.recipes.degradations import DegradationSpec, DownscaleSpec, MotionBlurSpec, NoiseSpec, PairsSpec
from tests.degradations.pictures import generators, picture


def _holds(sheet: np.ndarray, part: np.ndarray) -> bool:
    """Whether `part` is found somewhere in the sheet."""
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], width, axis=1)
    rows, columns = np.nonzero((windows == part[0, :, 0]).all(axis=-1))
    return any(
        np.array_equal(sheet[y : y + height, x : x + width], part) for y, x in zip(rows, columns, strict=True)
    )


def test_sheet_shows_crop_and_enlarged_variants() -> None:
    photo = picture(100, 120)
    sheet = contact_sheet([photo, picture(40, 200, 1)], [DownscaleSpec()], 4, 0, columns=2, crop=64)
    crop = photo[18:82, 28:92]
    small = degrade(crop[None], [DownscaleSpec()], 4, generators([0]))[0]
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 2 * 64
    assert sheet.shape[1] > 3 * 64
    assert _holds(sheet, crop)
    assert _holds(sheet, np.kron(small, np.ones((4, 4, 1), np.uint8)))
    assert _holds(sheet, picture(40, 200, 1)[:, 68:132])


def test_sheet_depends_on_the_seed_alone() -> None:
    photos = [picture(64, 64)]
    steps: list[DegradationSpec] = [DownscaleSpec(), NoiseSpec()]
    first, again, other = (contact_sheet(photos, steps, 2, seed, columns=3) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_headings_are_written() -> None:
    steps: list[list[DegradationSpec]] = [[MotionBlurSpec()], [NoiseSpec(probability=0)]]
    blur, noise = (
        contact_sheet([np.full((64, 64, 3), 200, np.uint8)], step, 1, 0, columns=2, crop=64) for step in steps
    )
    top = slice(0, 22)
    assert (blur[top] < 128).any()
    assert not np.array_equal(blur[top], noise[top])
    assert np.array_equal(blur[22:44], noise[22:44])


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one photo"):
        contact_sheet([], [DownscaleSpec()], 4, 0)
    with pytest.raises(RecipeError, match="pairs"):
        contact_sheet([picture(64, 64)], [PairsSpec()], 1, 0)
