"""The course of a run as one picture, for the card of a published model."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_sr.recipes.recipe import Recipe
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run

INK, SOFT, BASE = "#1d4ed8", "#9ca3af", "#1f2937"


def draw_training(run: Run) -> bytes | None:
    """PNG: PSNR-Y on the held-out photos and the generator's loss over the steps; None where neither is known."""
    recipe, losses, validations = run.recipe(), run.records("train"), run.records("validation")
    panels = [panel for panel, records in ((_psnr, validations), (_loss, losses)) if records]
    if not panels:
        return None
    figure = Figure(figsize=(4.8 * len(panels), 3.0), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        panel(axes, validations if panel is _psnr else losses)
        _mark_stages(axes, recipe)
        axes.set_xlabel("step")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _psnr(axes: Axes, records: Sequence[Record]) -> None:
    axes.plot([r["step"] for r in records], [r["psnr_y"] for r in records], marker="o", markersize=3, color=INK)
    axes.axhline(records[-1]["bicubic_psnr_y"], color=BASE, linestyle="--", linewidth=1)
    axes.set_title("PSNR-Y on held-out photos, dB (dashed: the input, enlarged if need be)", fontsize=8)


def _loss(axes: Axes, records: Sequence[Record]) -> None:
    axes.plot([r["step"] for r in records], [r["g_total"] for r in records], linewidth=0.7, color=INK)
    axes.set_yscale("log")
    axes.set_title("generator's loss, weighted sum", fontsize=8)


def _mark_stages(axes: Axes, recipe: Recipe) -> None:
    if recipe.pretrain and recipe.gan:
        axes.axvline(recipe.pretrain.steps, color=SOFT, linewidth=1)
        axes.annotate("GAN", (recipe.pretrain.steps, 1), xycoords=("data", "axes fraction"), fontsize=7, va="top")
