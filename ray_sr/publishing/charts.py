"""Line charts of a run by matplotlib: SVG for a page, whose CSS variables colour it light and dark, and PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

Point = tuple[float, float]
Line = Sequence[Point]

# The light values of the page's CSS variables. In an SVG each is replaced by its variable, so all must differ.
COLOURS = {
    "series-0": "#5d656e",
    "series-1": "#1f5fbf",
    "series-2": "#c2501b",
    "series-3": "#178060",
    "series-4": "#8a3fa8",
    "series-5": "#a07a00",
    "series-6": "#b0305f",
    "soft": "#5d656f",
    "line": "#e2e3e0",
    "grid": "#ecedea",
    "card": "#fffffe",
    "ink": "#1c2024",
}
_WIDTH, _HEIGHT = 480, 290  # of a chart in pixels of the page; fonts and lines have the same unit
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 26, 38
_MOST_POINTS = 400
_SMOOTHED_FROM = 60
_LOG_FROM = 30.0  # a range of values this wide is shown on a logarithmic axis, where the chart allows it


@dataclass(frozen=True)
class Series:
    """A curve of one or more pieces, each a list of (step, value). dots: mark and name every point."""

    label: str
    lines: Sequence[Line]
    colour: int
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line; the legend names it, where no curve can cross the name."""

    value: float
    label: str


@dataclass(frozen=True)
class Boundary:
    """A vertical line where a stage begins."""

    step: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    log: a logarithmic axis where all values are positive and their range is wide. zero: the axis begins at 0, or
    below. start: first step shown.
    """

    title: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    boundaries: Sequence[Boundary] = ()
    unit: str = ""
    log: bool = False
    zero: bool = False
    start: float = 0.0

    @property
    def values(self) -> list[float]:
        return [value for series in self.series for line in series.lines for _, value in _finite(line)]

    @property
    def has_legend(self) -> bool:
        """A single curve has its name from the title."""
        return len(self.series) > 1 or bool(self.levels)

    def svg(self) -> str:
        """An <svg> element without title and legend, which the page has as text. Empty without any finite value."""
        if not self.values:
            return ""
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        _draw(self, figure.add_axes((_LEFT / _WIDTH, _BOTTOM / _HEIGHT, width / _WIDTH, height / _HEIGHT)))
        stream = io.StringIO()
        # Text stays text, in the page's font. Ids are hashes; the salt keeps those of two charts on one page apart.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": self.title}):
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        return _inline(stream.getvalue(), f"{self.title} over steps")


def png(charts: Sequence[Chart]) -> bytes:
    """The charts side by side, each with its title and legend. Every one must have a finite value."""
    margins = ConstrainedLayoutEngine(w_pad=12 / 72, h_pad=12 / 72)
    figure = Figure(figsize=(_WIDTH / 72 * len(charts), (_HEIGHT + 60) / 72), layout=margins)
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        _draw(chart, axes)
        axes.set_title(chart.title, fontsize=12, pad=28, color=COLOURS["ink"], parse_math=False)
        if chart.has_legend:
            for entry in axes.legend(fontsize=9, frameon=False).get_texts():
                entry.set_parse_math(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=72)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------- drawing


def _draw(chart: Chart, axes: Axes) -> None:
    """The chart on empty axes. What a page styles or explains has a gid: `class` or `class|explanation`."""
    _scale(chart, axes)
    _dress(chart, axes)
    left, right = axes.get_xlim()
    for boundary in chart.boundaries:
        if left <= boundary.step <= right:
            _draw_boundary(boundary, axes, to_left=boundary.step > (left + right) / 2)
    for series in chart.series:
        _draw_series(series, chart.unit, axes)
    for level in chart.levels:
        _draw_level(level, axes)


def _scale(chart: Chart, axes: Axes) -> None:
    shown = [*chart.values, *(level.value for level in chart.levels), *([0.0] if chart.zero else [])]
    steps = [chart.start, *(step for series in chart.series for line in series.lines for step, _ in line)]
    axes.set_xlim(min(steps), max(*steps, min(steps) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    low, high = min(shown), max(shown)
    if chart.log and low > 0 and high / low > _LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 1000 else (1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        return
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low if low == 0 else low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _dress(chart: Chart, axes: Axes) -> None:
    soft = COLOURS["soft"]
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"])
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=1)
    axes.tick_params(left=False, bottom=False, pad=7, labelsize=11, labelcolor=soft)
    axes.yaxis.get_offset_text().set(color=soft, fontsize=11)
    corner: dict[str, Any] = {
        "textcoords": "offset points",
        "xycoords": "axes fraction",
        "fontsize": 11,
        "color": soft,
    }
    axes.annotate("step", (1, 0), (0, -33), ha="right", **corner)
    if chart.unit:
        axes.annotate(chart.unit, (0, 1), (-7, 12), ha="right", **corner)


def _draw_series(series: Series, unit: str, axes: Axes) -> None:
    """Long curves are drawn faint as they are, with their moving average on top."""
    colour, label = COLOURS[f"series-{series.colour}"], series.label
    for line in series.lines:
        points = thinned(list(_finite(line)))
        if not points:
            continue
        curve = points
        if len(points) >= _SMOOTHED_FROM:
            curve = moving_average(points)
            axes.plot(*_columns(points), color=colour, linewidth=1, alpha=0.28, clip_on=False, gid="raw")
        axes.plot(*_columns(curve), color=colour, linewidth=2, clip_on=False, gid="curve", label=label)
        label = "_"  # one entry of the legend for all pieces
        if series.dots or len(points) == 1:
            for step, value in points:
                name = f"step {step:,.0f}: {series.label} {value:.4g} {unit}".strip()
                dot: dict[str, Any] = {
                    "marker": "o",
                    "markersize": 7,
                    "color": colour,
                    "markeredgecolor": COLOURS["card"],
                }
                axes.plot([step], [value], markeredgewidth=1.5, clip_on=False, gid=f"dot|{name}", **dot)


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _draw_level(level: Level, axes: Axes) -> None:
    line = axes.axhline(level.value, color=COLOURS["series-0"], linewidth=1.5, dashes=(4, 2.7), clip_on=False)
    line.set(gid="level", label=level.label)


def _draw_boundary(boundary: Boundary, axes: Axes, *, to_left: bool) -> None:
    soft = COLOURS["soft"]
    axes.axvline(boundary.step, ymax=1.08, color=soft, linewidth=1, dashes=(2, 3), clip_on=False)
    axes.annotate(
        boundary.label, (boundary.step, 1), (-5 if to_left else 5, 8), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if to_left else "left", fontsize=11, color=soft, parse_math=False,
    )  # fmt: skip


def _inline(svg: str, name: str) -> str:
    """The <svg> of matplotlib's file for use inside HTML: no foreign names, styles or ids, colours as variables."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
                parent.remove(child)
    used = {value[1:] for item in root.iter() for key, value in item.attrib.items() if key.endswith("}href")}
    for item in list(root.iter()):
        item.tag = item.tag.rpartition("}")[2]
        item.attrib = {key.rpartition("}")[2]: value for key, value in item.attrib.items()}
        item.attrib.pop("clip-path", None)  # all lies inside the axes
        if "id" in item.attrib and item.attrib["id"] not in used:
            kind, _, explanation = item.attrib.pop("id").partition("|")
            if kind in ("raw", "curve", "dot", "level"):
                item.attrib["class"] = kind
            if explanation:
                title = ElementTree.Element("title")
                title.text = explanation
                item.insert(0, title)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": name}
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


# -------------------------------------------------------------------------------------------------- values


def _finite(line: Line) -> Iterable[Point]:
    return (point for point in line if math.isfinite(point[1]))


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> Sequence[Point]:
    """At most `most` points: means of runs of neighbours."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    runs = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def moving_average(points: Sequence[Point]) -> list[Point]:
    """Each value replaced by the mean of its neighbourhood, a fifteenth of the curve; narrower at the ends."""
    half = max(1, len(points) // 30)
    averaged = []
    for place, (step, _) in enumerate(points):
        reach = min(half, place, len(points) - 1 - place)
        near = points[place - reach : place + reach + 1]
        averaged.append((step, sum(value for _, value in near) / len(near)))
    return averaged


def short_number(value: float) -> str:
    """1500 as 1.5k, 2000000 as 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
