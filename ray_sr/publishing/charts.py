"""Line charts as inline SVG. Colours are CSS variables of the page, so one chart serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
Line = Sequence[Point]

COLOURS = 6  # the page defines --series-1 … --series-6
_WIDTH, _HEIGHT = 480, 290
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
    """A horizontal line with its name on it. colour 0 is that of plain text."""

    value: float
    label: str
    colour: int = 0


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

    def svg(self) -> str:
        """A <figure>: heading and legend as HTML, the plot as SVG. Empty without any finite value."""
        values = [point[1] for series in self.series for line in series.lines for point in _finite(line)]
        if not values:
            return ""
        return "\n".join(
            [
                f'<figure class="chart"><figcaption><b>{escape(self.title)}</b>{self._legend()}</figcaption>',
                f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self.title)} over steps">',
                *self._drawing(values),
                "</svg></figure>",
            ]
        )

    def _legend(self) -> str:
        if len(self.series) < 2:
            return ""
        entries = (f'<span class="key c{series.colour}">{escape(series.label)}</span>' for series in self.series)
        return f'<span class="legend">{"".join(entries)}</span>'

    def _drawing(self, values: list[float]) -> list[str]:
        shown = [*values, *(level.value for level in self.levels), *([0.0] if self.zero else [])]
        steps = [point[0] for series in self.series for line in series.lines for point in line]
        axes = _axes([self.start, *steps], shown, self.log)
        parts = [*_grid(axes, self.unit), *(_boundary(boundary, axes) for boundary in self.boundaries)]
        for series in self.series:
            parts += _curve(series, axes, self.unit)
        return parts + [_level(level, axes) for level in self.levels]


@dataclass(frozen=True)
class _Axis:
    """Maps [low, high] to pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high = self._on_scale(self.low), self._on_scale(self.high)
        share = (self._on_scale(value) - low) / (high - low)
        return self.start + share * (self.stop - self.start)

    def _on_scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        if self.log:
            return _log_ticks(self.low, self.high)
        return _ticks(self.low, self.high)


@dataclass(frozen=True)
class _Axes:
    x: _Axis
    y: _Axis

    def path(self, line: Line) -> str:
        return " ".join(f"{self.x.place(step):.1f},{self.y.place(value):.1f}" for step, value in line)


def _axes(steps: Sequence[float], values: Sequence[float], may_log: bool) -> _Axes:
    low, high = min(values), max(values)
    log = may_log and low > 0 and high / low > _LOG_FROM
    if log:
        low, high = low / 1.2, high * 1.2
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        low, high = (low if low == 0 else low - margin), high + margin
    x = _Axis(min(steps), max(*steps, min(steps) + 1), _LEFT, _WIDTH - _RIGHT)
    return _Axes(x, _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, log))


def _grid(axes: _Axes, unit: str) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    ticks = axes.y.ticks()
    digits = _digits(ticks)
    for value in ticks:
        y = axes.y.place(value)
        text = f"{value:g}" if axes.y.log or digits > 4 else f"{value:.{digits}f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for step in axes.x.ticks():
        x = axes.x.place(step)
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{short_number(step)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 5}" text-anchor="end">step</text>')
    if unit:
        parts.append(f'<text x="{_LEFT - 7}" y="{_TOP - 12}" text-anchor="end">{escape(unit)}</text>')
    return parts


def _curve(series: Series, axes: _Axes, unit: str) -> list[str]:
    """Long curves are drawn faint as they are, with their moving average on top."""
    parts = []
    for line in series.lines:
        points = thinned(list(_finite(line)))
        smooth = len(points) >= _SMOOTHED_FROM
        if smooth:
            parts.append(f'<polyline class="raw c{series.colour}" points="{axes.path(points)}"/>')
        curve = moving_average(points) if smooth else points
        parts.append(f'<polyline class="curve c{series.colour}" points="{axes.path(curve)}"/>')
        if series.dots or len(points) == 1:
            parts += (_dot(point, series, axes, unit) for point in points)
    return parts


def _dot(point: Point, series: Series, axes: _Axes, unit: str) -> str:
    x, y = axes.x.place(point[0]), axes.y.place(point[1])
    name = f"step {point[0]:,.0f}: {series.label} {point[1]:.4g} {unit}".strip()
    title = f"<title>{escape(name)}</title>"
    return f'<circle class="dot c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'


def _level(level: Level, axes: _Axes) -> str:
    y = axes.y.place(level.value)
    right = _WIDTH - _RIGHT
    place = f'x="{right}" y="{y - 6 if y > _TOP + 18 else y + 16:.1f}" text-anchor="end"'
    line = f'<line class="level c{level.colour}" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="halo c{level.colour}" {place}>{escape(level.label)}</text>'


def _boundary(boundary: Boundary, axes: _Axes) -> str:
    x = axes.x.place(boundary.step)
    if not _LEFT <= x <= _WIDTH - _RIGHT:
        return ""
    to_left = x > (_LEFT + _WIDTH) / 2
    place = f'x="{x - 5 if to_left else x + 5:.1f}" text-anchor="{"end" if to_left else "start"}"'
    text = f'<text class="halo" y="{_TOP - 10}" {place}>{escape(boundary.label)}</text>'
    return f'<line class="boundary" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 22}" y2="{_HEIGHT - _BOTTOM}"/>{text}'


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


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 3 else (1, 3)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _digits(ticks: Sequence[float]) -> int:
    """Digits behind the point that tell neighbouring ticks apart."""
    if len(ticks) < 2:
        return 2
    return max(0, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
