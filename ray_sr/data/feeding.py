"""How batches reach a training worker: from Ray Data's tasks or made here, ahead of their use either way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_sr.data.ahead import ahead
from ray_sr.data.stream import BatchStream


@dataclass(frozen=True)
class Batch:
    """The batch of one worker and step: uint8 N×h×w×3 and N×H×W×3, in memory of their own."""

    row: int
    lr: np.ndarray
    hr: np.ndarray


def made_here(stream: BatchStream, first: int, stride: int, threads: int = 1) -> Iterator[Batch]:
    """Batches of the rows first, first + stride, …, made by threads of this process."""

    def make(row: int) -> Batch:
        lr, hr = stream.batches([row])
        return Batch(row, lr[0], hr[0])

    return ahead(make, itertools.count(first, stride), threads)


def made_by_tasks(stream: BatchStream, rows: Any) -> Iterator[Batch]:
    """Batches of `rows` (a Ray Data iterator over `batch_dataset`), completed by a thread of this process."""
    # Whole blocks, because Ray Data takes a millisecond or two to cut a block into rows.
    source = iter(rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))

    def take(_: None) -> list[Batch] | None:
        block = next(source, None)
        return None if block is None else _completed(stream, block)

    for batches in ahead(take, itertools.repeat(None), 1):
        if batches is None:
            return
        yield from batches


def _completed(stream: BatchStream, block: dict[str, np.ndarray]) -> list[Batch]:
    """The rows of a block, copied because the object store is read-only."""
    rows, hr = block["row"].tolist(), block["hr"].copy()
    lr = block["lr"].copy() if "lr" in block else [stream.degrade(*pair) for pair in zip(rows, hr, strict=True)]
    return [Batch(*row) for row in zip(rows, lr, hr, strict=True)]


def spare_threads(cpus: float) -> int:
    """Threads that make batches beside training: half of a worker's CPUs, one at least."""
    return max(1, int(cpus) // 2)
