"""What a model is for, by its recipe: by what its training did to photographs before the network saw them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Purpose = Literal["clean", "unknown", "deblurring", "interpolation", "other"]

_DAMAGE = {"second_order", "jpeg", "webp", "noise", "blur"}


class Told(TypedDict):
    """What is told of a model to those who choose one."""

    purpose: Purpose
    description: str


BUILT_IN_TOLD: Told = {"purpose": "interpolation", "description": "without a network, for comparison"}


def told_by(recipe: Mapping[str, Any] | None, scale: int) -> Told:
    """Purpose and description by the recipe in a model's card; None where nothing is known of its making."""
    recipe = recipe or {}
    steps = [step["kind"] for step in recipe.get("degradation", [])]
    return {"purpose": _purpose_of(steps, scale), "description": str(recipe.get("description") or "")}


def _purpose_of(steps: list[str], scale: int) -> Purpose:
    if scale == 1 and "motion_blur" in steps:
        return "deblurring"
    if steps == ["downscale"]:
        return "clean"
    return "unknown" if _DAMAGE.intersection(steps) else "other"
