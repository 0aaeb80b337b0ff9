"""Tiles of several pictures in one run of the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ray_sr.serving.schemas import Abandoned


@dataclass(eq=False)
class _Tiles:
    """What one picture wants run now; `result` or `error` when it has been."""

    turn: Turn
    network: nn.Module
    tiles: torch.Tensor
    result: torch.Tensor | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def goes_with(self, other: _Tiles) -> bool:
        return self.network is other.network and self.tiles.shape[1:] == other.tiles.shape[1:]


@dataclass(eq=False)
class Turn:
    """A picture among those that share the device. `begun` is when its first tile ran (perf_counter)."""

    batches: Batches
    order: tuple[bool, int]
    gone: threading.Event
    most_pixels: int
    begun: float | None = None

    def run(self, network: nn.Module, tiles: torch.Tensor) -> torch.Tensor:
        """network(tiles), N×C×h×w -> N×C×(h·scale)×(w·scale); maybe with tiles of others.

        Raises what the network raises, and Abandoned where `gone` is set before it is these tiles' turn.
        """
        return self.batches.run(_Tiles(self, network, tiles))


class Batches:
    """A device that pictures share, each in a thread of its own.

    Who came first goes first, jobs after all others. What runs is filled up with tiles of the same network and
    size that other pictures wait with, to `most` tiles and as many pixels as suit the first; where there is room
    for more and others are at work on theirs, it waits for these for up to `wait_s`. `note` hears how many tiles a
    run had.
    """

    def __init__(self, most: int, wait_s: float = 0.002, note: Callable[[int], None] = lambda tiles: None) -> None:
        self.most, self.wait_s, self.note = most, wait_s, note
        self._changed = threading.Condition()
        self._waiting: list[_Tiles] = []
        self._running = False
        self._pictures = 0
        self._number = 0

    @contextmanager
    def turn(self, gone: threading.Event, most_pixels: int, job: bool = False) -> Iterator[Turn]:
        """A picture's place for the block; `gone` is set when nobody waits for it any more.

        most_pixels: of all tiles of a run that its own begins.
        """
        with self._changed:
            self._number += 1
            self._pictures += 1
            turn = Turn(self, (job, self._number), gone, most_pixels)
        try:
            yield turn
        finally:
            with self._changed:
                self._pictures -= 1
                self._changed.notify_all()

    def run(self, mine: _Tiles) -> torch.Tensor:
        """The result of these tiles, run by this thread or by that of another picture."""
        with self._changed:
            self._waiting.append(mine)
            self._changed.notify_all()
        while some := self._next(mine):
            try:
                self._run_together(some)
            finally:
                with self._changed:
                    self._running = False
                    self._changed.notify_all()
        if mine.error is not None:
            raise mine.error
        assert mine.result is not None
        return mine.result

    def _next(self, mine: _Tiles) -> list[_Tiles]:
        """What this thread is to run once the device is free; none when `mine` is done."""
        with self._changed:
            self._changed.wait_for(lambda: mine.done or not self._running)
            self._drop_abandoned()
            if mine.done:
                return []
            self._running = True
            first = min(self._waiting, key=lambda tiles: tiles.turn.order)
            self._changed.wait_for(lambda: self._is_full(first), self.wait_s)
            some = self._fitting(first)
            for tiles in some:
                self._waiting.remove(tiles)
            return some

    def _drop_abandoned(self) -> None:
        for tiles in [tiles for tiles in self._waiting if tiles.turn.gone.is_set()]:
            self._waiting.remove(tiles)
            tiles.error = Abandoned()
        self._changed.notify_all()

    def _room(self, first: _Tiles) -> int:
        """Tiles of this size that may run at once."""
        height, width = first.tiles.shape[2:]
        return min(self.most, first.turn.most_pixels // (height * width))

    def _fitting(self, first: _Tiles) -> list[_Tiles]:
        """These tiles, and those that go with them."""
        room = self._room(first) - len(first.tiles)
        some = [first]
        for tiles in sorted(self._waiting, key=lambda tiles: tiles.turn.order):
            if tiles is not first and tiles.goes_with(first) and len(tiles.tiles) <= room:
                some.append(tiles)
                room -= len(tiles.tiles)
        return some

    def _is_full(self, first: _Tiles) -> bool:
        """Whether waiting brings nothing: no room for one more, or no picture that may come with one."""
        if len(self._waiting) >= self._pictures:
            return True
        return sum(len(one.tiles) for one in self._fitting(first)) >= self._room(first)

    def _run_together(self, some: list[_Tiles]) -> None:
        for one in some:
            one.turn.begun = one.turn.begun or time.perf_counter()
        self.note(sum(len(one.tiles) for one in some))
        try:
            result = some[0].network(torch.cat([one.tiles for one in some]) if len(some) > 1 else some[0].tiles)
            for one, part in zip(some, result.split([len(one.tiles) for one in some]), strict=True):
                one.result = part
        except Exception as error:
            if len(some) == 1:
                some[0].error = error
                return
            for one in some:  # memory may suffice for each alone
                self._run_together([one])
