"""Admission: what is taken is given back, whatever happens."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from ray_sr.serving.budget import Budget
from ray_sr.serving.problems import Problem


def test_never_more_than_the_capacity_and_nothing_stays_taken() -> None:
    random = np.random.default_rng(3)
    budget = Budget(100, "pixels")
    served = 0
    for _ in range(200):
        with suppress(Problem), budget.lease(int(random.integers(0, 80))) as one, budget.lease() as two:
            one.add(int(random.integers(0, 40)))
            two.add(int(random.integers(0, 40)))
            assert budget.taken == one.held + two.held <= 100
            served += 1
        assert budget.taken == 0
    assert 0 < served < 200


def test_refused_share_leaves_the_others_alone() -> None:
    budget = Budget(10, "bytes")
    with budget.lease(6) as lease:
        with pytest.raises(Problem, match="bytes"), budget.lease(5):
            pytest.fail("5 do not fit beside 6")
        lease.add(4)
        assert budget.taken == 10


def test_errors_inside_give_back() -> None:
    budget = Budget(10, "bytes")
    with pytest.raises(KeyError), budget.lease(6):
        raise KeyError
    assert budget.taken == 0
