"""Pictures of a sweep: courses, parallel coordinates, importance, Pareto front; PNG and SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ray_sr.tuning.importance import Importance, common_step, importances
from ray_sr.tuning.results import Outcome, Results, short_names
from ray_sr.tuning.space import Domain

FORMATS = ("png", "svg")
LABELS = {"psnr_y": "PSNR-Y, dB", "psnr_rgb": "PSNR-RGB, dB"}
BEST, DARK, SOFT = "#c2410c", "#1f2937", "#9ca3af"
COLOURS = "viridis_r"
MOST_NAMED = 20


def draw_all(results: Results) -> dict[str, bytes]:
    """File name -> content, for every picture that the results have data for."""
    if not results.ranked:
        return {}
    figures = {"courses": _courses(results), "parallel": _parallel(results), "pareto": _pareto(results)}
    if found := importances(results):
        figures["importance"] = _importance(results, found)
    return {f"{name}.{kind}": _encode(figure, kind) for name, figure in figures.items() for kind in FORMATS}


def _encode(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _scale_of_colours(results: Results) -> Normalize:
    values = _objectives(results)
    low, high = min(values), max(values)
    return Normalize(low, high if high > low else low + 1e-9)


def _colours(results: Results) -> Callable[[Outcome], Any]:
    """Colours by objective: the higher, the darker; the best one has its own."""
    norm, colours = _scale_of_colours(results), colormaps[COLOURS]

    def colour(outcome: Outcome) -> Any:
        is_best = results.best is not None and outcome.number == results.best.number
        return BEST if is_best else colours(float(norm(outcome.objective or 0.0)))

    return colour


def _objectives(results: Results) -> list[float]:
    return [o.objective for o in results.ranked if o.objective is not None]


def _look(results: Results) -> Callable[[Outcome], dict[str, Any]]:
    """Colour, width and order of a trial's line: the best one stands out."""
    colour = _colours(results)

    def look(outcome: Outcome) -> dict[str, Any]:
        if results.best and outcome.number == results.best.number:
            return {"color": BEST, "linewidth": 2.8, "zorder": 4}
        return {"color": colour(outcome), "linewidth": 1.4, "zorder": 3}

    return look


def _name(axes: Axes, outcome: Outcome, x: float, y: float, results: Results, away: float = 6.0) -> None:
    best = results.best is not None and outcome.number == results.best.number
    axes.annotate(
        str(outcome.number),
        (x, y),
        (away, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=BEST if best else DARK,
        fontweight="bold" if best else "normal",
        zorder=5,
    )


# ------------------------------------------------------------------------------------------------ courses


def _courses(results: Results) -> Figure:
    """PSNR over steps of all trials; a cross where one ended early."""
    figure, axes = _figure(9, 5)
    look = _look(results)
    for outcome in results.ranked:
        steps, values = zip(*outcome.course, strict=True)
        axes.plot(steps, values, marker="o", markersize=3, **look(outcome))
        if outcome.status != "done":
            axes.plot(steps[-1], values[-1], "x", markersize=9, markeredgewidth=2, color=look(outcome)["color"])
    if results.bicubic is not None:
        axes.axhline(results.bicubic, color=DARK, linestyle="--", linewidth=1, label="bicubic")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    if len(results.ranked) <= MOST_NAMED:
        _name_ends(axes, results)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel("step")
    axes.set_ylabel(LABELS[results.space.objective.metric])
    best = f"; best: trial {results.best.number}" if results.best else ""
    axes.set_title(f"PSNR on the held-out photos of all trials (x: ended early){best}", fontsize=10)
    return figure


def _name_ends(axes: Axes, results: Results) -> None:
    """Trial numbers at the ends of their lines, moved down where two would cover each other."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    taken: list[tuple[float, float]] = []
    for outcome in results.ranked:
        step, place = outcome.course[-1]
        while any(
            abs(place - y) < (high - low) * 0.035 and abs(step - x) < (right - left) * 0.03 for x, y in taken
        ):
            place -= (high - low) * 0.01
        taken.append((step, place))
        _name(axes, outcome, step, place, results)


# ------------------------------------------------------------------------------------ parallel coordinates


@dataclass(frozen=True)
class _Scale:
    """One upright axis: places values between 0 and 1, and the values that are written beside it."""

    title: str
    place: Callable[[Any], float]
    ticks: Sequence[Any]


def _parallel(results: Results) -> Figure:
    """Every trial as a line through its values, coloured by what it reached."""
    names = short_names(list(results.space.fields))
    scales = [_of_domain(short, results.space.fields[name]) for name, short in names.items()]
    tail: dict[str, list[Any]] = {
        "parameters": [o.parameters for o in results.ranked],
        "steps/s": [o.steps_per_s for o in results.ranked],
        LABELS[results.space.objective.metric]: _objectives(results),
    }
    scales += [_of_figures(title, [v for v in values if v is not None]) for title, values in tail.items()]
    figure, axes = _figure(max(7.0, 1.9 * len(scales)), 5)
    look = _look(results)
    for outcome in reversed(results.ranked):
        figures: list[Any] = [outcome.values[name] for name in names]
        figures += [outcome.parameters, outcome.steps_per_s, outcome.objective]
        points = [
            (x, scale.place(value))
            for x, (scale, value) in enumerate(zip(scales, figures, strict=True))
            if value is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], solid_joinstyle="round", **look(outcome))
    for x, scale in enumerate(scales):
        _draw_scale(axes, x, scale)
    axes.set_xlim(-0.25, len(scales) - 0.55)
    axes.set_axis_off()
    best = f", trial {results.best.number} (the best) in orange" if results.best else ""
    axes.set_title(f"Trials and what they reached{best}", fontsize=10, pad=26)
    mappable = ScalarMappable(_scale_of_colours(results), COLOURS)
    figure.colorbar(mappable, ax=axes, label=scales[-1].title, fraction=0.025, pad=0.01)
    return figure


def _of_domain(title: str, domain: Domain) -> _Scale:
    if not domain.is_range:
        values = sorted(domain.values) if domain.is_numeric else list(domain.values)
        last = max(1, len(values) - 1)
        return _Scale(title, lambda value: values.index(value) / last, values)
    low, high = domain.values
    if domain.kind == "loguniform":
        span = math.log(high / low)
        return _Scale(title, lambda value: math.log(value / low) / span, (low, math.sqrt(low * high), high))
    return _Scale(title, lambda value: (value - low) / (high - low), (low, (low + high) / 2, high))


def _of_figures(title: str, values: Sequence[float]) -> _Scale:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high == low:
        return _Scale(title, lambda value: 0.5, (low,))
    return _Scale(title, lambda value: (value - low) / (high - low), (low, (low + high) / 2, high))


def _draw_scale(axes: Axes, x: int, scale: _Scale) -> None:
    axes.plot([x, x], [0, 1], color=DARK, linewidth=1, zorder=2)
    axes.text(x, 1.06, scale.title, ha="center", va="bottom", fontsize=9, color=DARK)
    for tick in scale.ticks:
        y = scale.place(tick)
        axes.plot([x - 0.02, x], [y, y], color=DARK, linewidth=1, zorder=2)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
        axes.text(x - 0.04, y, _short(tick), ha="right", va="center", fontsize=8, color=DARK, bbox=box, zorder=6)


def _short(value: Any) -> str:
    if isinstance(value, (int, float)) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.2f}"
    text = str(value)
    return text if len(text) <= 18 else f"{text[:17]}…"


# ----------------------------------------------------------------------------------- Pareto, importance


def _pareto(results: Results) -> Figure:
    """PSNR against parameters, the discs as large as the speed; the front is joined by a line."""
    figure, axes = _figure(7.5, 5)
    fastest = max((o.steps_per_s or 0.0 for o in results.ranked), default=0.0) or 1.0
    colour = _colours(results)
    for outcome in results.ranked:
        size = 40 + 260 * (outcome.steps_per_s or 0.0) / fastest
        axes.scatter(
            outcome.parameters,
            outcome.objective or 0.0,
            s=size,
            color=colour(outcome),
            edgecolor=DARK if outcome.on_front else "none",
            linewidth=1.6,
            alpha=0.85,
            zorder=3,
        )
        if len(results.ranked) <= MOST_NAMED:
            away = 3 + math.sqrt(size / math.pi)
            _name(axes, outcome, outcome.parameters, outcome.objective or 0.0, results, away)
    axes.margins(0.12)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel("parameters of the generator")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel(LABELS[results.space.objective.metric])
    axes.set_title(
        "PSNR against size; larger discs train faster; ringed: on the Pareto front of PSNR, size and speed",
        fontsize=9,
    )
    return figure


def _importance(results: Results, found: Sequence[Importance]) -> Figure:
    """A bar for each field: its rank correlation with the objective."""
    figure, axes = _figure(7.5, 1.3 + 0.5 * len(found))
    names = short_names(list(results.space.fields))
    for row, importance in enumerate(reversed(found)):
        value = importance.value
        axes.barh(row, value or 0.0, height=0.6, color=BEST if importance.is_ratio else "#0f766e")
        text = "never varied" if value is None else f"{value:.2f}" if importance.is_ratio else f"{value:+.2f}"
        side = -1 if (value or 0.0) < 0 else 1
        axes.annotate(
            text, (value or 0.0, row), (5 * side, 0), textcoords="offset points", va="center", fontsize=8,
            ha="left" if side > 0 else "right",
        )  # fmt: skip
    axes.set_yticks(range(len(found)), [names[importance.field] for importance in reversed(found)])
    axes.set_xlim(-1.15, 1.15)
    axes.axvline(0, color=DARK, linewidth=1)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_xlabel("Spearman's rank correlation (choices without order: correlation ratio of ranks)", fontsize=8)
    step, count = common_step(results), len(results.ranked)
    metric = LABELS[results.space.objective.metric].removesuffix(", dB")
    axes.set_title(f"How the values go with {metric} at step {step}, {count} trials (association only)", fontsize=9)
    return figure
