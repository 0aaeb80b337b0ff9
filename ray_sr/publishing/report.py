"""The report of a run: one HTML file that holds everything, for a browser without network or scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ray_sr import __version__
from ray_sr.errors import InputError, ResourceError
from ray_sr.evaluation import Evaluation
from ray_sr.evaluation.table import COLUMNS
from ray_sr.images import write_bytes
from ray_sr.publishing.charts import Boundary, Chart, Level, Series
from ray_sr.publishing.notes import EQUILIBRIUM, Record, baseline_name, equilibrium_label, headline, notes
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
    page = _Page(run)
    body = page.body(evaluations or {}, extra)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{target.parent}: cannot make this folder: {first_line(error)}") from None
    write_bytes(target, _document(f"{page.recipe.name}: training report", body).encode())
    return target


def _document(title: str, body: str) -> str:
    style = (resources.files("ray_sr") / "publishing" / "report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


class _Page:
    """The parts of one run's page."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe = run.recipe()
        self.steps = run.records("train")
        self.validations = run.records("validation")
        self.starts = run.records("start")
        self.boundaries = _boundaries(self.recipe)

    @property
    def step(self) -> int:
        return max((record["step"] for record in [*self.steps, *self.validations]), default=0)

    def body(self, evaluations: Mapping[str, Evaluation], extra: Sequence[ExtraSection]) -> str:
        parts = [
            self._header(),
            self._charts(),
            self._samples(),
            *(_evaluation(title, found) for title, found in evaluations.items()),
            *(_extra(section) for section in extra),
            self._facts(),
            self._recipe(),
            f"<footer>ray-sr {escape(__version__)}, written {_now()}</footer>",
        ]
        return "\n".join(part for part in parts if part)

    def _header(self) -> str:
        recipe = self.recipe
        about = (
            f"{recipe.generator.kind}, x{recipe.scale}"
            if recipe.scale > 1
            else f"{recipe.generator.kind}, deblurring"
        )
        found = notes(recipe, self.steps, self.validations, self.starts)
        items = "".join(f"<li>{escape(note)}</li>" for note in found)
        description = f'<p class="soft">{escape(recipe.description)}</p>' if recipe.description else ""
        return "\n".join(
            [
                f'<header><p class="over">Training report · {escape(about)}</p>',
                f"<h1>{escape(recipe.name)}</h1>{description}",
                f'<p class="lead">{escape(headline(recipe, self.validations))}</p>',
                f'<dl class="cards">{"".join(self._cards())}</dl>',
                f'<ul class="notes">{items}</ul></header>' if items else "</header>",
            ]
        )

    def _cards(self) -> Iterable[str]:
        recipe = self.recipe
        if self.validations:
            last = self.validations[-1]
            for name, label in (("psnr_y", "PSNR-Y"), ("psnr_rgb", "PSNR-RGB")):
                base = last[f"bicubic_{name}"]
                against = f"{last[name] - base:+.2f} dB to {baseline_name(recipe)}"
                yield _card(label, f"{last[name]:.2f} dB", against)
        total = recipe.total_steps
        state = "done" if self.step >= total else f"of {total:,}: {self.step / total:.0%} when this was written"
        share = f'<span class="bar"><i style="width:{min(1, self.step / total):.1%}"></i></span>'
        yield _card("Steps", f"{self.step:,}", state, share)
        if seconds := _seconds(self.steps):
            yield _card(
                "Time in training steps", duration(seconds), f"{self.step / seconds:.3g} steps/s in the mean"
            )
        if self.starts:
            world = self.starts[-1]["world"]
            yield _card("Workers", str(world), str(self.starts[-1].get("compute", "")))

    def _charts(self) -> str:
        charts = [self._psnr(), self._generator(), *self._discriminator()]
        drawn = "\n".join(svg for chart in charts if (svg := chart.svg()))
        more = "\n".join(svg for chart in self._course() if (svg := chart.svg()))
        folded = f'<details><summary>Learning rate and speed</summary><div class="charts">{more}</div></details>'
        return f'<h2>Curves</h2>\n<div class="charts">{drawn}</div>{folded if more else ""}' if drawn else ""

    def _psnr(self) -> Chart:
        lines = _lines(self.validations, "psnr_y")
        base = [record["bicubic_psnr_y"] for record in self.validations[-1:]]
        levels = [Level(value, f"{baseline_name(self.recipe)} {value:.2f} dB") for value in base]
        series = [Series("PSNR-Y", [[point for line in lines for point in line]], 1, dots=True)]
        return Chart("PSNR-Y on held-out photos", series, levels, self.boundaries, unit="dB")

    def _generator(self) -> Chart:
        names = {name for record in self.steps for name in record if name.startswith("g_")} - {"g_total"}
        terms = [
            Series(name.removeprefix("g_").replace("_", " "), _lines(self.steps, name), 2 + number % 5)
            for number, name in enumerate(sorted(names, key=lambda name: (name == "g_adversarial", name)))
        ]
        total = Series("total", _lines(self.steps, "g_total"), 1)
        title = "Generator loss and its terms before their weights"
        return Chart(title, [*terms, total], (), self.boundaries, log=True)

    def _discriminator(self) -> list[Chart]:
        if self.recipe.gan is None:
            return []
        spec = self.recipe.gan.adversarial
        start = self.recipe.pretrain.steps if self.recipe.pretrain else 0
        level = Level(EQUILIBRIUM[spec.kind], equilibrium_label(spec))
        losses = [Series("discriminator", _lines(self.steps, "d_loss"), 2)]
        if any("d_penalty" in record for record in self.steps):
            losses.append(Series("gradient penalty", _lines(self.steps, "d_penalty"), 4))
        seen = [
            Series("real recognised", _lines(self.steps, "d_accuracy_real"), 3),
            Series("generated recognised", _lines(self.steps, "d_accuracy_fake"), 4),
        ]
        return [
            Chart("Discriminator loss", losses, [level], zero=True, start=start),
            Chart("What the discriminator recognises", seen, [Level(0.5, "guessing")], zero=True, start=start),
        ]

    def _course(self) -> list[Chart]:
        rate = Series("learning rate", _lines(self.steps, "lr"), 1)
        speed = Series("steps/s", _lines(self.steps, "steps_per_s"), 3)
        wait = Series("waiting", _lines(self.steps, "data_wait"), 5)
        return [
            Chart("Learning rate of the generator", [rate], (), self.boundaries, zero=True),
            Chart("Steps per second", [speed], (), self.boundaries, zero=True),
            Chart("Share of the time spent waiting for data", [wait], (), self.boundaries, zero=True),
        ]

    def _samples(self) -> str:
        """The last sample, and folded some before it. One that is being written just now may be empty."""
        files = [file for file in sorted(self.run.samples.glob("*.png")) if file.stem.isdigit()]
        files = [file for file in files if file.stat().st_size]
        if not files:
            return ""
        last, *earlier = reversed(_spread(files, _MOST_SAMPLES))
        now = Picture.of(last, f"Step {int(last.stem):,}: input, output, original")
        before = [Picture.of(file, f"Step {int(file.stem):,}") for file in reversed(earlier)]
        folded = f"<details><summary>How it got there</summary>{_figures(before, 'pictures')}</details>"
        return f"<h2>Sample</h2>\n{_figures([now], 'pictures wide')}{folded if before else ''}"

    def _facts(self) -> str:
        facts, start = self.run.facts(), (self.starts[-1] if self.starts else {})
        options = self.recipe.generator.model_dump()
        generator = [options.pop("kind"), *(f"{key} {value}" for key, value in options.items())]
        rows = {
            "Generator": ", ".join([*generator, f"scale {self.recipe.scale}"]),
            "Discriminator": self.recipe.discriminator.kind if self.recipe.discriminator else None,
            "Data": facts.get("shards"),
            "Data digest": facts.get("data_digest"),
            "Sub-images": _sub_images(start),
            "Batch": f"{self.recipe.data.batch} crops of {self.recipe.data.crop} px",
            "Machine": _machine(facts),
            "Device": start.get("compute"),
            "Versions": _versions(facts),
            "Began": facts.get("began"),
            "Seed": str(self.recipe.seed),
            "Run": self.run.place,
        }
        lines = (f"<tr><th>{key}</th><td>{escape(str(value))}</td></tr>" for key, value in rows.items() if value)
        return f'<h2>Data, machine, versions</h2>\n<table class="facts">{"".join(lines)}</table>'

    def _recipe(self) -> str:
        text = escape(recipe_yaml(self.recipe))
        return f"<details><summary>Recipe, every default written out</summary><pre>{text}</pre></details>"


# --------------------------------------------------------------------------------------------- sections


def _evaluation(title: str, evaluation: Evaluation) -> str:
    shown = list(evaluation.pictures.items())[:_MOST_PICTURES]
    pictures = [Picture.of(path, name) for name, path in shown]
    unseen = len(evaluation.pictures) - len(shown)
    more = [f"{unseen} further pictures are in {shown[0][1].parent}."] if unseen else []
    left_out = [f"Left out: {photo.name}: {photo.reason}" for photo in evaluation.left_out]
    lines = "".join(f'<p class="soft">{escape(line)}</p>' for line in [evaluation.protocol, *left_out, *more])
    model = f"<p>{escape(evaluation.model)}, x{evaluation.scale}</p>"
    return (
        f"<h2>{escape(title)}</h2>\n{model}{_table(evaluation)}{lines}{_figures(pictures, 'pictures wide sheets')}"
    )


def _table(evaluation: Evaluation) -> str:
    columns = [(name, COLUMNS[name]) for name in evaluation.columns]
    first = "".join(f'<th colspan="2">{escape(column.label)}</th>' for _, column in columns)
    second = f"<th>model</th><th>{evaluation.baseline_name}</th>" * len(columns)
    head = f"<thead><tr><th></th>{first}</tr><tr><th>photo</th>{second}</tr></thead>"
    body = []
    for row in evaluation.rows():
        cells = []
        for name, column in columns:
            ours, base = row.figures[name], row.baseline[name]
            better = ours < base if column.lower_is_better else ours > base
            cells.append(f'<td class="{"better" if better else ""}">{column.show(ours)}</td>')
            cells.append(f'<td class="base">{column.show(base)}</td>')
        body.append(f"<tr><th>{escape(row.name)}</th>{''.join(cells)}</tr>")
    body[-1] = body[-1].replace("<tr>", '<tr class="mean">', 1)
    return f'<div class="table"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'


def _extra(section: ExtraSection) -> str:
    paragraphs = (f"<p>{escape(text)}</p>" for text in section.text.split("\n\n") if text.strip())
    return f"<h2>{escape(section.title)}</h2>\n{''.join(paragraphs)}{_figures(section.pictures, 'pictures wide')}"


def _figures(pictures: Sequence[Picture], layout: str) -> str:
    figures = []
    for picture in pictures:
        caption = escape(picture.caption)
        source = f"data:{_media(picture.data)};base64,{base64.b64encode(picture.data).decode()}"
        image = f'<div class="picture"><img alt="{caption}" src="{source}"></div>'
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="{layout}">{"".join(figures)}</div>' if figures else ""


def _media(data: bytes) -> str | None:
    return next((media for magic, media in _MEDIA.items() if data.startswith(magic)), None)


def _card(label: str, big: str, small: str, below: str = "") -> str:
    return (
        f'<div><dt>{escape(label)}</dt><dd class="big">{escape(big)}</dd>'
        f'<dd class="small">{escape(small)}{below}</dd></div>'
    )


# ---------------------------------------------------------------------------------------------- records


def _boundaries(recipe: Recipe) -> list[Boundary]:
    return [Boundary(recipe.pretrain.steps, "GAN stage")] if recipe.pretrain and recipe.gan else []


def _lines(records: Sequence[Record], name: str) -> list[list[tuple[float, float]]]:
    """The values of one name over steps, one line for each stage that has any."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if name in record:
            stages.setdefault(record.get("stage", ""), []).append((record["step"], record[name]))
    return list(stages.values())


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


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
