"""What an evaluation found: for each photo and in the mean, as a table for the terminal and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_sr.data.pairs import LeftOut
from ray_sr.metrics import mean_metrics

_LINE = 100  # columns of the terminal table

Figures = dict[str, float]


@dataclass(frozen=True)
class Column:
    """How a figure is shown: its heading, its digits behind the point, which of two is the better; and whether
    a terminal's table is broken before it."""

    label: str
    digits: int
    lower_is_better: bool = False
    begins_table: bool = False

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "inf"


COLUMNS = {
    "psnr_y": Column("PSNR-Y", 2),
    "ssim_y": Column("SSIM-Y", 4),
    "psnr_rgb": Column("PSNR-RGB", 2),
    "ssim_rgb": Column("SSIM-RGB", 4),
    "sharpness": Column("sharpness", 1, begins_table=True),
    "sharpness_ratio": Column("sharp/HR", 3),
    "vgg19_conv3_4": Column("VGG19 conv3_4", 4, lower_is_better=True),
    "lpips_alex": Column("LPIPS", 4, lower_is_better=True),
    "lpips_vgg": Column("LPIPS-VGG", 4, lower_is_better=True),
    "lpips_squeeze": Column("LPIPS-Squeeze", 4, lower_is_better=True),
    "dists": Column("DISTS", 4, lower_is_better=True),
    "brisque": Column("BRISQUE", 2, lower_is_better=True),
}


@dataclass(frozen=True)
class ImageResult:
    """Figures of one photo: of the model's output and of the baseline."""

    name: str
    figures: Figures
    baseline: Figures


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `pictures` are the PNG files written, by photo name."""

    model: str
    scale: int
    precision: str
    protocol: str
    images: list[ImageResult]
    left_out: list[LeftOut] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def baseline_name(self) -> str:
        """`bicubic`; at x1, where there is nothing to enlarge, the unchanged `input`."""
        return "bicubic" if self.scale > 1 else "input"

    @property
    def mean(self) -> Figures:
        """Means over the photos; sharpness_ratio is the ratio of the two mean sharpnesses."""
        return _mean([image.figures for image in self.images])

    @property
    def bicubic(self) -> Figures:
        """The same of the baseline."""
        return _mean([image.baseline for image in self.images])

    @property
    def columns(self) -> list[str]:
        """Names of the figures that a table shows, in their order."""
        return [name for name in COLUMNS if name in self.images[0].figures]

    def rows(self) -> list[ImageResult]:
        """What a table shows: every photo and, last, the mean."""
        return [*self.images, ImageResult("mean", self.mean, self.bicubic)]

    def table(self) -> str:
        """Text for a terminal: the protocol, a line for each photo, the mean; sharpness and what was left out.

        PSNR and SSIM are in the first table; no table is wider than 100 columns, however many figures there are.
        """
        head = [f"{self.model}, x{self.scale}, {self.precision}", *textwrap.wrap(self.protocol, _LINE)]
        tables = (_ruled(_aligned(block)) for block in self._blocks())
        left_out = [f"left out: {photo.name}: {photo.reason}" for photo in self.left_out]
        return "\n\n".join(["\n".join(head), *tables, "\n".join([self._sharpness(), *left_out])])

    def to_json(self) -> dict[str, Any]:
        """One object for `--json`. JSON has no infinity: the PSNR of a photo equal to its reference is null."""
        images = [
            {"name": image.name, **_json(image.figures), "bicubic": _json(image.baseline)} for image in self.images
        ]
        return {
            "model": self.model,
            "scale": self.scale,
            "precision": self.precision,
            "protocol": self.protocol,
            "baseline": self.baseline_name,
            "images": images,
            "mean": _json(self.mean),
            "bicubic": _json(self.bicubic),
            "left_out": [{"name": photo.name, "reason": photo.reason} for photo in self.left_out],
        }

    def _blocks(self) -> list[list[list[str]]]:
        """Cells by row, the heading first: comparisons of pixels, then of looks, as many side by side as fit."""
        names = [["photo"], *([row.name] for row in self.rows())]
        blocks, block = [], names
        for column in self.columns:
            pair = self._pair(column)
            wider = _beside(block, pair)
            too_wide = len(_aligned(wider)[0]) > _LINE
            if block is not names and (too_wide or COLUMNS[column].begins_table):
                blocks.append(block)
                wider = _beside(names, pair)
            block = wider
        return [*blocks, block]

    def _pair(self, name: str) -> list[list[str]]:
        """The cells of one figure: heading, photos, mean; of the model and of the baseline."""
        column = COLUMNS[name]
        cells = [[column.show(row.figures[name]), column.show(row.baseline[name])] for row in self.rows()]
        return [[column.label, self.baseline_name], *cells]

    def _sharpness(self) -> str:
        """Mean sharpness before and after; where there is HR, its share of HR's."""
        both = (self.baseline_name, self.bicubic), ("model", self.mean)
        if "sharpness_hr" not in self.mean:
            alone = [f"{name} {figures['sharpness']:.1f}" for name, figures in both]
            return f"mean sharpness: {', '.join(alone)}"
        shares = [f"{name} {figures['sharpness']:.1f} ({figures['sharpness_ratio']:.1%})" for name, figures in both]
        return f"mean sharpness: {', '.join(shares)} of HR's {self.mean['sharpness_hr']:.1f}"


def _mean(entries: Sequence[Figures]) -> Figures:
    means = mean_metrics(entries)
    if "sharpness_ratio" in means:
        means["sharpness_ratio"] = ratio_of(means)
    return means


def ratio_of(figures: Figures) -> float:
    """Sharpness to HR's; 1 where both are flat."""
    if figures["sharpness_hr"]:
        return figures["sharpness"] / figures["sharpness_hr"]
    return math.inf if figures["sharpness"] else 1.0


def _json(figures: Figures) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def first_of(left_out: Sequence[LeftOut]) -> str:
    """Of what no photo is left of."""
    return f"the first of {len(left_out)}: {left_out[0].name}: {left_out[0].reason}"


def _beside(left: list[list[str]], right: list[list[str]]) -> list[list[str]]:
    return [cells + more for cells, more in zip(left, right, strict=True)]


def _ruled(lines: list[str]) -> str:
    """Rules under the heading and above the last line."""
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
