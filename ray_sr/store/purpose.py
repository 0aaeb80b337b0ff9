"""What a model is for, as its card tells: by what its training did to photographs before the network saw them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Purpose = Literal["clean", "unknown", "deblurring", "interpolation", "other"]

_DAMAGE = {"second_order", "jpeg", "webp", "noise", "blur"}


def purpose_of(card: Mapping[str, Any], scale: int, *, built_in: bool = False) -> Purpose:
    """`card` has the fields of ModelRecord, or none where nothing is known of the model's making."""
    if built_in:
        return "interpolation"
    recipe = card.get("recipe") or {}
    steps = [step["kind"] for step in recipe.get("degradation", [])]
    if scale == 1 and "motion_blur" in steps:
        return "deblurring"
    if steps == ["downscale"]:
        return "clean"
    return "unknown" if _DAMAGE.intersection(steps) else "other"
