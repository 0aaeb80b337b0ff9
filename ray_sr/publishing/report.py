"""The report of a run: one HTML file that holds everything, for a browser without network or scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ray_sr import __version__
from ray_sr.errors import InputError, ResourceError
from ray_sr.evaluation import Evaluation
from ray_sr.evaluation.table import COLUMNS, Column
from ray_sr.images import write_bytes
from ray_sr.publishing.charts import Chart
from ray_sr.publishing.notes import Record, baseline_name, headline, notes
from ray_sr.publishing.training_curves import course_charts, main_charts
from ray_sr.recipes.reader import recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import first_line
from ray_sr.training.runs import Run

_MEDIA = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_MOST_SAMPLES = 5
_MOST_PICTURES = 12


@dataclass(frozen=True)
class Picture:
    """A picture file and what it shows. Raises InputError for other data than PNG, JPEG or WebP."""

    caption: str
    data: bytes

    def __post_init__(self) -> None:
        if _media(self.data) is None:
            raise InputError(f"{self.caption}: is no PNG, JPEG or WebP picture, so it cannot go into the report")

    @property
    def address(self) -> str:
        """The picture as a data: URL."""
        return f"data:{_media(self.data)};base64,{base64.b64encode(self.data).decode()}"

    @classmethod
    def of(cls, path: str | Path, caption: str = "") -> Picture:
        """Raises InputError where the file cannot be read."""
        try:
            return cls(caption or Path(path).name, Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {first_line(error)}") from None


@dataclass(frozen=True)
class ExtraSection:
    """A further section: plain text (an empty line ends a paragraph), then pictures over the full width."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()

    @property
    def paragraphs(self) -> list[str]:
        return [text for text in self.text.split("\n\n") if text.strip()]


def write_report(
    run: Run,
    out: Path | None = None,
    *,
    evaluations: Mapping[str, Evaluation] | None = None,
    extra: Sequence[ExtraSection] = (),
) -> Path:
    """Write the report of a run, finished or not, to `out` (by default RUN/report.html); returns its path.

    evaluations: benchmark tables by heading, with the pictures they wrote. extra: sections that follow. What a
    run does not have yet is left out. Raises RecipeError or InputError where recipe.yaml is unreadable, and
    ResourceError where the report cannot be written.
    """
    target = out or run.folder / "report.html"
    page = _page(run, evaluations or {}, extra)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{target.parent}: cannot make this folder: {first_line(error)}") from None
    write_bytes(target, page.encode())
    return target


def _page(run: Run, evaluations: Mapping[str, Evaluation], extra: Sequence[ExtraSection]) -> str:
    recipe = run.recipe()
    steps, validations, starts = (run.records(event) for event in ("train", "validation", "start"))
    style = (resources.files("ray_sr") / "publishing" / "report.css").read_text(encoding="utf-8")
    return _template().render(
        style=Markup(style),
        recipe=recipe,
        headline=headline(recipe, validations),
        notes=notes(recipe, steps, validations, starts),
        cards=list(_cards(recipe, steps, validations, starts)),
        charts=_drawn(main_charts(recipe, steps, validations)),
        course=_drawn(course_charts(recipe, steps)),
        samples=_samples(run),
        evaluations=[_EvaluationSection.of(title, found) for title, found in evaluations.items()],
        extra=extra,
        facts=_facts(run, recipe, starts[-1] if starts else {}),
        recipe_text=recipe_yaml(recipe),
        version=__version__,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _template() -> Template:
    """All text in it is escaped but what is Markup."""
    environment = Environment(
        loader=PackageLoader("ray_sr", "publishing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


# --------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class _Card:
    """A figure of the page's head; share: a bar below it that is filled to this part of its width."""

    label: str
    big: str
    small: str
    share: float | None = None


def _cards(
    recipe: Recipe, steps: Sequence[Record], validations: Sequence[Record], starts: Sequence[Record]
) -> Iterator[_Card]:
    if validations:
        last = validations[-1]
        for name, label in (("psnr_y", "PSNR-Y"), ("psnr_rgb", "PSNR-RGB")):
            gain = last[name] - last[f"bicubic_{name}"]
            yield _Card(label, f"{last[name]:.2f} dB", f"{gain:+.2f} dB against {baseline_name(recipe)}")
    step, total = max((record["step"] for record in [*steps, *validations]), default=0), recipe.total_steps
    state = "done" if step >= total else f"of {total:,}: {step / total:.0%} when this was written"
    yield _Card("Steps", f"{step:,}", state, min(1.0, step / total))
    if seconds := _seconds(steps):
        yield _Card("Time in training steps", duration(seconds), f"{step / seconds:.3g} steps/s on average")
    if starts:
        yield _Card("Workers", str(starts[-1]["world"]), str(starts[-1].get("compute", "")))


def _drawn(charts: Sequence[Chart]) -> list[tuple[Chart, Markup]]:
    """Charts that have values, each with its drawing, in which the XML writer has escaped all text."""
    drawn = ((chart, chart.svg()) for chart in charts)
    return [(chart, Markup(svg)) for chart, svg in drawn if svg]


def _samples(run: Run) -> list[Picture]:
    """The last sample, then some before it. One that is being written just now may be empty."""
    files = [file for file in sorted(run.samples.glob("*.png")) if file.stem.isdigit()]
    files = [file for file in files if file.stat().st_size]
    if not files:
        return []
    *earlier, last = _spread(files, _MOST_SAMPLES)
    now = Picture.of(last, f"Step {int(last.stem):,}: input, output, original")
    return [now, *(Picture.of(file, f"Step {int(file.stem):,}") for file in earlier)]


def _facts(run: Run, recipe: Recipe, start: Record) -> dict[str, str]:
    facts = run.facts()
    options = recipe.generator.model_dump()
    generator = [options.pop("kind"), *(f"{key} {value}" for key, value in options.items())]
    rows = {
        "Generator": ", ".join([*generator, f"scale {recipe.scale}"]),
        "Discriminator": recipe.discriminator.kind if recipe.discriminator else None,
        "Data": facts.get("shards"),
        "Data digest": facts.get("data_digest"),
        "Sub-images": _sub_images(start),
        "Batch": f"{recipe.data.batch} crops of {recipe.data.crop} px",
        "Machine": _machine(facts),
        "Device": start.get("compute"),
        "Versions": _versions(facts),
        "Began": facts.get("began"),
        "Seed": str(recipe.seed),
        "Run": run.place,
    }
    return {key: str(value) for key, value in rows.items() if value}


@dataclass(frozen=True)
class _Cell:
    ours: str
    base: str
    better: bool


@dataclass(frozen=True)
class _Row:
    name: str
    cells: list[_Cell]


@dataclass(frozen=True)
class _EvaluationSection:
    """A benchmark table, what has to be known about it, and its pictures."""

    title: str
    evaluation: Evaluation
    columns: list[Column]
    rows: list[_Row]
    lines: list[str]
    pictures: list[Picture]

    @classmethod
    def of(cls, title: str, evaluation: Evaluation) -> _EvaluationSection:
        shown = list(evaluation.pictures.items())[:_MOST_PICTURES]
        unseen = len(evaluation.pictures) - len(shown)
        more = [f"{unseen} further pictures are in {shown[0][1].parent}."] if unseen else []
        left_out = [f"Left out: {photo.name}: {photo.reason}" for photo in evaluation.left_out]
        rows = [
            _Row(
                row.name,
                [_cell(COLUMNS[name], row.figures[name], row.baseline[name]) for name in evaluation.columns],
            )
            for row in evaluation.rows()
        ]
        pictures = [Picture.of(path, name) for name, path in shown]
        columns = [COLUMNS[name] for name in evaluation.columns]
        return cls(title, evaluation, columns, rows, [evaluation.protocol, *left_out, *more], pictures)


def _cell(column: Column, ours: float, base: float) -> _Cell:
    better = ours < base if column.lower_is_better else ours > base
    return _Cell(column.show(ours), column.show(base), better)


def _media(data: bytes) -> str | None:
    return next((media for magic, media in _MEDIA.items() if data.startswith(magic)), None)


# ---------------------------------------------------------------------------------------------- records


def _seconds(steps: Sequence[Record]) -> float:
    """Time that the logged steps took: validation and checkpoints between them are not counted."""
    before, total = 0, 0.0
    for record in steps:
        if record.get("steps_per_s"):
            total += (record["step"] - before) / record["steps_per_s"]
        before = record["step"]
    return total


def duration(seconds: float) -> str:
    """3 h 05 min, 4 min 10 s, 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _sub_images(start: Record) -> str | None:
    if "sub_images" not in start:
        return None
    return f"{start['sub_images']:,}, {'kept in memory' if start.get('cached') else 'streamed from the shards'}"


def _machine(facts: Mapping[str, Any]) -> str | None:
    if "cpus" not in facts:
        return None
    return f"{facts['cpus']:g} CPUs, {facts.get('gpus', 0):g} GPUs, {facts.get('nodes', 1)} node(s)"


def _versions(facts: Mapping[str, Any]) -> str:
    labels = {"ray_sr": "ray-sr", "ray": "Ray", "torch": "torch", "python": "Python"}
    return ", ".join(f"{label} {facts[key]}" for key, label in labels.items() if key in facts)
