"""The tile plan: cores cover each pixel once, margins suffice, sources are equal, aligned and within the area."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ray_sr.upscaling.tiles import Span, plan_tiles

SIZES = [1, 2, 5, 7, 63, 64, 65, 100, 257, 1000]


def _check_axis(spans: tuple[Span, ...], begin: int, end: int, overlap: int, multiple: int) -> None:
    assert spans[0].start == begin
    assert spans[-1].stop == end
    for before, after in itertools.pairwise(spans):
        assert before.stop == after.start
    for span in spans:
        assert span.start < span.stop
        assert span.source_start % multiple == 0
        assert (span.source_stop - span.source_start) % multiple == 0
        assert span.source_start == 0 or span.start - span.source_start >= overlap
        assert span.source_stop >= end or span.source_stop - span.stop >= overlap
        assert span.source_start >= 0
        assert span.source_stop < end + multiple
    assert len({span.source_stop - span.source_start for span in spans}) == 1


@pytest.mark.parametrize(("overlap", "multiple"), [(0, 1), (8, 1), (13, 1), (8, 4), (10, 4), (3, 2)])
@pytest.mark.parametrize("tile", [64, 100])
def test_every_plan_covers_the_picture_with_equal_aligned_tiles(tile: int, overlap: int, multiple: int) -> None:
    for height, width in itertools.product(SIZES, SIZES):
        plan = plan_tiles(height, width, tile, overlap, multiple)
        _check_axis(plan.rows, 0, height, overlap, multiple)
        _check_axis(plan.columns, 0, width, overlap, multiple)
        assert np.prod(plan.source_size) <= tile * tile
        assert len(list(plan)) == len(plan)


@pytest.mark.parametrize("top", [1, 8, 37, 99, 255, 256])
def test_the_rest_of_a_picture_is_planned_from_any_row(top: int) -> None:
    for multiple in (1, 4):
        plan = plan_tiles(257, 130, 48, 10, multiple, top)
        _check_axis(plan.rows, top, 257, 10, multiple)
        _check_axis(plan.columns, 0, 130, 10, multiple)


def test_what_fits_is_one_tile_whatever_its_shape() -> None:
    assert len(plan_tiles(64, 64, 64, 40)) == 1
    assert len(plan_tiles(1, 4096, 64, 40)) == 1
    assert len(plan_tiles(4096, 1, 64, 40)) == 1


def test_a_narrow_picture_gets_long_tiles() -> None:
    plan = plan_tiles(1000, 40, 100, 20)
    assert len(plan.columns) == 1
    assert plan.source_size[0] > 200


def test_no_slivers_just_above_the_limit() -> None:
    plan = plan_tiles(130, 130, 128, 16)
    cores = [span.stop - span.start for span in (*plan.rows, *plan.columns)]
    assert min(cores) >= 65


def test_no_other_grid_of_the_same_limit_is_less_work() -> None:
    height, width, tile, overlap = 300, 450, 150, 20
    plan = plan_tiles(height, width, tile, overlap)

    def side(length: int, count: int) -> int:
        return -(-(length + (count - 1) * 2 * overlap) // count)

    works = [
        down * across * side(height, down) * side(width, across)
        for down, across in itertools.product(range(1, 200), repeat=2)
        if side(height, down) * side(width, across) <= tile * tile
    ]
    assert len(plan) * np.prod(plan.source_size) == min(works)


@pytest.mark.parametrize(
    "arguments",
    [(0, 5, 64, 8), (5, 5, 0, 8), (5, 5, 64, -1), (5, 5, 64, 8, 0), (5, 5, 64, 8, 1, 5), (500, 500, 40, 20)],
)
def test_impossible_plans_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        plan_tiles(*arguments)
