"""Bicubic enlargement against the published figures: does this installation measure what the field's tables do?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.data.pairs import find_pairs, read_pair
from ray_sr.errors import InputError
from ray_sr.evaluation.evaluate import OnImage
from ray_sr.evaluation.table import Figures, _aligned
from ray_sr.images.resample import upscale_array
from ray_sr.metrics import mean_metrics, measure

# ------------------------------------------------------------------------------------------ self-check

# Set, scale: PSNR in dB and SSIM on Y of MATLAB's bicubic, as EDSR (arXiv 1707.02921, table 3) and others print.
PUBLISHED_BICUBIC = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.24, 0.8688),
    ("Set14", 3): (27.55, 0.7742),
    ("Set14", 4): (26.00, 0.7027),
}
PSNR_TOLERANCE, SSIM_TOLERANCE = 0.02, 0.001


@dataclass(frozen=True)
class CheckRow:
    """Bicubic's figures on one set, measured here and published."""

    set: str
    scale: int
    psnr_y: float
    ssim_y: float
    published_psnr_y: float
    published_ssim_y: float

    @property
    def ok(self) -> bool:
        """Within 0.02 dB and 0.001."""
        psnr_off = abs(self.psnr_y - self.published_psnr_y)
        return psnr_off <= PSNR_TOLERANCE and abs(self.ssim_y - self.published_ssim_y) <= SSIM_TOLERANCE


@dataclass(frozen=True)
class SelfCheck:
    """Whether resizing, metrics and protocol of this installation give the figures that everybody publishes."""

    rows: list[CheckRow]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def table(self) -> str:
        """Aligned text for a terminal."""
        cells = [["set", "scale", "PSNR-Y", "published", "SSIM-Y", "published", ""]]
        for row in self.rows:
            psnr_cells = [f"{row.psnr_y:.3f}", f"{row.published_psnr_y:.2f}"]
            ssim_cells = [f"{row.ssim_y:.4f}", f"{row.published_ssim_y:.4f}"]
            cells.append([row.set, f"x{row.scale}", *psnr_cells, *ssim_cells, "ok" if row.ok else "DIFFERS"])
        return "\n".join(_aligned(cells))

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "rows": [{**row.__dict__, "ok": row.ok} for row in self.rows]}


def self_check(
    benchmarks_folder: str | os.PathLike[str],
    *,
    scales: Sequence[int] = (2, 3, 4),
    progress: OnImage | None = None,
) -> SelfCheck:
    """Measure bicubic on FOLDER/Set5/HR and FOLDER/Set14/HR at these scales against the published figures.

    A set whose folder is absent is left out; InputError where both are, or where a photo cannot be read.
    progress: called after each set and scale with (done, total, what).
    """
    folder = Path(benchmarks_folder)
    known = [key for key in PUBLISHED_BICUBIC if key[1] in scales and (folder / key[0] / "HR").is_dir()]
    if not known:
        raise InputError(f"{folder}: neither Set5/HR nor Set14/HR is in this folder: give the one that holds them")
    rows = []
    for number, (name, scale) in enumerate(known, start=1):
        figures = _bicubic_figures(folder / name / "HR", scale)
        rows.append(CheckRow(name, scale, figures["psnr_y"], figures["ssim_y"], *PUBLISHED_BICUBIC[name, scale]))
        if progress:
            progress(number, len(known), f"{name} x{scale}")
    return SelfCheck(rows)


def _bicubic_figures(folder: Path, scale: int) -> Figures:
    figures = []
    for files in find_pairs(folder, None, scale)[0]:
        try:
            pair = read_pair(files, scale)
        except InputError as error:
            raise InputError(f"{folder / files.name}: {error}") from None
        figures.append(measure(upscale_array(pair.lr, scale), pair.hr, border=scale))
    return mean_metrics(figures)
