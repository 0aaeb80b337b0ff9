"""The curves of a run: what its report shows, and the picture for the card of a published model."""

from __future__ import annotations

from collections.abc import Sequence

from ray_sr.publishing.charts import Boundary, Chart, Level, Line, Series, png
from ray_sr.publishing.notes import EQUILIBRIUM, Record, baseline_name, equilibrium_label
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.runs import Run


def draw_training(run: Run) -> bytes | None:
    """PNG: PSNR-Y on the held-out photos and the generator's loss over the steps; None where neither is known."""
    recipe = run.recipe()
    charts = [psnr_chart(recipe, run.records("validation")), generator_chart(recipe, run.records("train"))]
    known = [chart for chart in charts if chart.values]
    return png(known) if known else None


def main_charts(recipe: Recipe, steps: Sequence[Record], validations: Sequence[Record]) -> list[Chart]:
    """What tells how well the networks learn. A chart without records has no values."""
    return [psnr_chart(recipe, validations), generator_chart(recipe, steps), *_discriminator_charts(recipe, steps)]


def psnr_chart(recipe: Recipe, validations: Sequence[Record]) -> Chart:
    lines = _lines(validations, "psnr_y")
    base = [record["bicubic_psnr_y"] for record in validations[-1:]]
    levels = [Level(value, f"{baseline_name(recipe)} {value:.2f} dB") for value in base]
    series = [Series("PSNR-Y", [[point for line in lines for point in line]], 1, dots=True)]
    return Chart("PSNR-Y on held-out photos", series, levels, _boundaries(recipe), unit="dB")


def generator_chart(recipe: Recipe, steps: Sequence[Record]) -> Chart:
    names = {name for record in steps for name in record if name.startswith("g_")} - {"g_total"}
    terms = [
        Series(name.removeprefix("g_").replace("_", " "), _lines(steps, name), 2 + number % 5)
        for number, name in enumerate(sorted(names, key=lambda name: (name == "g_adversarial", name)))
    ]
    total = Series("total", _lines(steps, "g_total"), 1)
    title = "Generator loss and its terms before their weights"
    return Chart(title, [*terms, total], (), _boundaries(recipe), log=True)


def _discriminator_charts(recipe: Recipe, steps: Sequence[Record]) -> list[Chart]:
    if recipe.gan is None:
        return []
    spec = recipe.gan.adversarial
    start = recipe.pretrain.steps if recipe.pretrain else 0
    level = Level(EQUILIBRIUM[spec.kind], equilibrium_label(spec))
    losses = [Series("discriminator", _lines(steps, "d_loss"), 2)]
    if any("d_penalty" in record for record in steps):
        losses.append(Series("gradient penalty", _lines(steps, "d_penalty"), 4))
    seen = [
        Series("real recognised", _lines(steps, "d_accuracy_real"), 3),
        Series("generated recognised", _lines(steps, "d_accuracy_fake"), 4),
    ]
    return [
        Chart("Discriminator loss", losses, [level], zero=True, start=start),
        Chart("What the discriminator recognises", seen, [Level(0.5, "guessing")], zero=True, start=start),
    ]


def course_charts(recipe: Recipe, steps: Sequence[Record]) -> list[Chart]:
    """How the training went on: learning rate, speed, waiting for data."""
    rate = Series("learning rate", _lines(steps, "lr"), 1)
    speed = Series("steps/s", _lines(steps, "steps_per_s"), 3)
    wait = Series("waiting", _lines(steps, "data_wait"), 5)
    return [
        Chart("Learning rate of the generator", [rate], (), _boundaries(recipe), zero=True),
        Chart("Steps per second", [speed], (), _boundaries(recipe), zero=True),
        Chart("Share of the time spent waiting for data", [wait], (), _boundaries(recipe), zero=True),
    ]


def _boundaries(recipe: Recipe) -> list[Boundary]:
    return [Boundary(recipe.pretrain.steps, "GAN stage")] if recipe.pretrain and recipe.gan else []


def _lines(records: Sequence[Record], name: str) -> list[Line]:
    """The values of one name over steps, one line for each stage that has any."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if name in record:
            stages.setdefault(record.get("stage", ""), []).append((record["step"], record[name]))
    return list(stages.values())
