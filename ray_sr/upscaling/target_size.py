"""How large a result is to be: a scale, or a box that it has to fit into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ray_sr.errors import InputError, RecipeError


class Sized2D(Protocol):
    """What has a height and a width in pixels: a photo or a clip."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class TargetSize:
    """A scale (None: the network's), or a width or a height or both in pixels, which keep the aspect ratio.

    Raises RecipeError for a scale together with a side, and for sides below 1.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        sides = [side for side in (self.width, self.height) if side is not None]
        if sides and self.scale is not None:
            raise RecipeError("a scale and a width or height exclude each other: give one of them")
        if any(side < 1 for side in sides):
            raise RecipeError(f"a width or height must be at least 1 pixel, not {min(sides)}")

    def of(self, photo: Sized2D, network_scale: int) -> tuple[int, int]:
        """Height and width of this photo's result, at least 1. Raises InputError for a scale that is none."""
        ratios = [self.width / photo.width] if self.width else []
        ratios += [self.height / photo.height] if self.height else []
        if ratios:
            return _scaled(photo, min(ratios))
        return target_size(photo, network_scale if self.scale is None else self.scale)

    def suffix(self, network_scale: int) -> str:
        """What results are named by: _x4, _1920w, _1080h or _1920x1080."""
        if self.width and self.height:
            return f"_{self.width}x{self.height}"
        if self.width or self.height:
            return f"_{self.width}w" if self.width else f"_{self.height}h"
        return f"_x{network_scale if self.scale is None else self.scale:g}"


def target_size(photo: Sized2D, scale: float) -> tuple[int, int]:
    """Height and width of the photo enlarged `scale` times. Raises InputError for a scale that is none."""
    if not 0 < scale < float("inf"):
        raise InputError(f"cannot enlarge {scale:g} times: the scale must be a positive number")
    return _scaled(photo, scale)


def _scaled(photo: Sized2D, ratio: float) -> tuple[int, int]:
    return max(1, round(photo.height * ratio)), max(1, round(photo.width * ratio))
