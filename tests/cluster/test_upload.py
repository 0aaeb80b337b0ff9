"""What `ray job submit --working-dir .` uploads, as Ray itself reads .rayignore."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import _get_ignore_file

from ray_sr.store.store import SHIPPED

ROOT = Path(__file__).parents[2]


def test_shipped_weights_travel_and_other_weights_do_not() -> None:
    left_out = _get_ignore_file(ROOT, ignore_file=".rayignore")
    if left_out is None:
        pytest.fail(".rayignore is gone")
    weights = list(SHIPPED.rglob("*.safetensors"))
    assert weights
    assert not any(left_out(path) for path in weights)
    assert left_out(ROOT / "model.safetensors")
    assert left_out(ROOT / "docs" / "models.md")
