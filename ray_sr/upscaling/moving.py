"""What runs over folders ask of those who know clips and animations, which stand above this package."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ray_sr.upscaling.results import FileResult


class MovingNames(Protocol):
    """Which files of folders are clips and animations, and how their results are called."""

    def takes(self, path: Path) -> bool:
        """Whether this file moves and can be enlarged here."""

    def ending(self, path: Path) -> str:
        """What follows the stem in the name of its result: suffix and extension."""


class Moving(MovingNames, Protocol):
    """Clips and animations in the folders of a run."""

    def upscale(self, source: Path, target: Path) -> FileResult:
        """Enlarges one."""
