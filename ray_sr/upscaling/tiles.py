"""Where a picture is cut into tiles: pure geometry, in input pixels.

Each tile has a source (what the network sees) and a core (what is kept of its result). Around its core a tile
sees at least `overlap` pixels more, except at the picture's border. With an overlap of at least the network's
receptive field the tiled result is therefore the untiled one. All sources of a plan have the same size, so
they can be batched, and none is a sliver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """One tile along one axis. `stop` and `source_stop` are exclusive; only the source may pass the border."""

    start: int
    stop: int
    source_start: int
    source_stop: int


@dataclass(frozen=True)
class Tile:
    """One tile: its rows and its columns."""

    rows: Span
    columns: Span


@dataclass(frozen=True)
class TilePlan:
    """A grid of tiles: their cores cover the picture, each pixel once."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __iter__(self) -> Iterator[Tile]:
        return (Tile(rows, columns) for rows in self.rows for columns in self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width that the network sees, the same for every tile."""
        rows, columns = self.rows[0], self.columns[0]
        return rows.source_stop - rows.source_start, columns.source_stop - columns.source_start


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 1, top: int = 0) -> TilePlan:
    """The grid with the least work whose sources have at most tile·tile pixels.

    Sources begin at and measure multiples of `multiple`; so the last ones may pass the border by less than
    that. With `top`, only rows from there on are planned (those above are done, and still seen). A narrow
    picture gets long tiles. Raises ValueError where no such grid exists or a number makes no sense.
    """
    if min(height, width, tile, multiple) < 1 or overlap < 0 or not 0 <= top < height:
        raise ValueError(f"cannot plan {height}x{width}: {tile=}, {overlap=}, {multiple=}, {top=}")
    rows = _Axis.of(height, overlap, multiple, top)
    columns = _Axis.of(width, overlap, multiple, 0)
    area = tile * tile // multiple**2
    counts = _best_counts(rows, columns, area)
    if counts is None:
        raise ValueError(f"a tile of {tile} leaves nothing between margins of {overlap}")
    return TilePlan(rows.spans(counts[0]), columns.spans(counts[1]))


def _best_counts(rows: _Axis, columns: _Axis, area: int) -> tuple[int, int] | None:
    """How many tiles down and across make the least work, of all grids of tiles of at most `area`."""
    best, least = None, math.inf
    for across in range(1, columns.most + 1):
        width = columns.size(across)
        down = rows.fewest(area // width)
        if down is None:
            continue
        work = down * rows.size(down) * across * width
        if work < least:
            best, least = (down, across), work
        if down == 1:
            break
    return best


@dataclass(frozen=True)
class _Axis:
    """One axis, in units of `multiple` pixels that count from `origin`."""

    length: int
    margin: int
    multiple: int
    origin: int
    begin: int
    end: int

    @classmethod
    def of(cls, pixels: int, overlap: int, multiple: int, begin: int) -> _Axis:
        origin = max(0, begin - overlap) // multiple * multiple
        length = -(-(pixels - origin) // multiple)
        return cls(length, -(-overlap // multiple), multiple, origin, begin, pixels)

    @property
    def most(self) -> int:
        """The largest number of tiles whose cores are all more than margins."""
        return max(1, self.length - 2 * self.margin)

    def size(self, count: int) -> int:
        """Size of each of `count` sources that overlap by two margins and cover the axis."""
        return -(-(self.length + (count - 1) * 2 * self.margin) // count)

    def fewest(self, size: int) -> int | None:
        """The smallest number of sources of at most `size`; None where margins leave no room."""
        if self.length <= size:
            return 1
        room = size - 2 * self.margin
        if room < 1:
            return None
        return -(-(self.length - 2 * self.margin) // room)

    def spans(self, count: int) -> tuple[Span, ...]:
        """`count` equal sources, spread evenly; cores meet in the middle of each overlap."""
        size = self.size(count)
        starts = [i * (self.length - size) // max(1, count - 1) for i in range(count)]
        middles = [(after + before + size) // 2 for before, after in pairwise(starts)]
        edges = [self.begin, *(self._pixel(middle) for middle in middles), self.end]
        return tuple(
            Span(edges[i], edges[i + 1], self._pixel(start), self._pixel(start + size))
            for i, start in enumerate(starts)
        )

    def _pixel(self, units: int) -> int:
        return self.origin + units * self.multiple
