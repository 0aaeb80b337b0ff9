"""Section, Scale, ValueRange and the constrained numbers: what every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Scale = Literal[1, 2, 3, 4, 8]
ValueRange = Literal["unit", "signed"]


class Section(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused and values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


def ordered(low_high: tuple[float, float]) -> tuple[float, float]:
    if low_high[0] > low_high[1]:
        raise ValueError(f"the range [{low_high[0]}, {low_high[1]}] is upside down: write [low, high]")
    return low_high
