"""How batches reach a training worker: from Ray Data's tasks or made here, ahead of their use either way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_sr.data.prefetch import prefetch_map
from ray_sr.data.stream import BatchStream


@dataclass(frozen=True)
class Batch:
    """A row of the stream: uint8 N×h×w×3 and N×H×W×3, in memory of their own (page-locked where asked)."""

    row: int
    lr: Tensor
    hr: Tensor

    @classmethod
    def of(cls, row: int, lr: np.ndarray, hr: np.ndarray, pinned: bool) -> Batch:
        tensors = [torch.from_numpy(pixels) for pixels in (lr, hr)]
        return cls(row, *(tensor.pin_memory() if pinned else tensor for tensor in tensors))


def local_batches(
    stream: BatchStream, first: int, stride: int, threads: int = 1, pinned: bool = False
) -> Generator[Batch, None, None]:
    """Batches of the rows first, first + stride, …, made by threads of this process.

    A GPU copies pinned ones while it computes.
    """

    def make(row: int) -> Batch:
        lr, hr = stream.batches([row])
        return Batch.of(row, lr[0], hr[0], pinned)

    return prefetch_map(make, itertools.count(first, stride), threads)


def ray_data_batches(
    stream: BatchStream, rows: Any, pinned: bool = False, begin_again: Callable[[int], bool] = lambda times: False
) -> Generator[Batch, None, None]:
    """Batches of `rows` (a Ray Data iterator over `batch_dataset`), completed by a thread of this process.

    After the last row, `begin_again` is told how often it came to that, and answers whether the tasks shall make
    as many rows once more: the next ones of the stream, if it has moved the stream's `first_row`.
    """
    blocks = _blocks(rows, begin_again)

    def take(_: None) -> list[Batch] | None:
        block = next(blocks, None)
        return None if block is None else _completed(stream, block, pinned)

    for batches in prefetch_map(take, itertools.repeat(None), 1):
        if batches is None:
            return
        yield from batches


def _blocks(rows: Any, begin_again: Callable[[int], bool]) -> Iterator[dict[str, np.ndarray]]:
    # Whole blocks, because Ray Data takes a millisecond or two to cut a block into rows.
    for times in itertools.count(1):
        yield from rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        if not begin_again(times):
            return


def _completed(stream: BatchStream, block: dict[str, np.ndarray], pinned: bool) -> list[Batch]:
    """The rows of a block, copied because the object store is read-only."""
    rows, hr = block["row"].tolist(), block["hr"].copy()
    lr = block["lr"].copy() if "lr" in block else [stream.degrade(*pair) for pair in zip(rows, hr, strict=True)]
    return [Batch.of(*row, pinned) for row in zip(rows, lr, hr, strict=True)]


def spare_threads(cpus: float) -> int:
    """Threads that make batches beside training: half of a worker's CPUs, one at least."""
    return max(1, int(cpus) // 2)
