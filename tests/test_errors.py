"""Errors on their way between processes."""

from __future__ import annotations

import pytest

from ray_sr.errors import (
    ClusterError,
    InputError,
    ModelError,
    RaySRError,
    RecipeError,
    ResourceError,
    WeightsAbsentError,
    described,
    from_description,
)
from ray_sr.images import PhotoError
from ray_sr.training.state import DamagedCheckpointError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RaySRError("a"), RaySRError),
        (RecipeError("a"), RecipeError),
        (InputError("a"), InputError),
        (WeightsAbsentError("a"), WeightsAbsentError),
        (ResourceError("a"), ResourceError),
        (ModelError("a"), ModelError),
        (DamagedCheckpointError("a"), ModelError),
        (ClusterError("a"), ClusterError),
        (PhotoError("a", "bad-crc"), InputError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_described_error_keeps_its_message_and_exit_code(error: RaySRError, kind: type[RaySRError]) -> None:
    again = from_description(**described(error))
    assert type(again) is kind
    assert (str(again), again.exit_code) == (str(error), error.exit_code)


def test_a_kind_that_nobody_knows_is_an_error_all_the_same() -> None:
    assert type(from_description("Unheard", "a")) is RaySRError
