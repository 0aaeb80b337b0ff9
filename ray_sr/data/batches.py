"""How batches reach a training worker: from Ray Data's tasks or made here, ahead of their use either way."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from ray_sr.data.prefetch import prefetch_map
from ray_sr.data.stream import BatchStream, batch_dataset, segments

Block = dict[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """A row of the stream: N×h×w×3 and N×H×W×3, uint8 or uint16, in their own memory (page-locked where asked)."""

    row: int
    lr: Tensor
    hr: Tensor

    @classmethod
    def of(cls, row: int, lr: np.ndarray, hr: np.ndarray, pinned: bool) -> Batch:
        tensors = [torch.from_numpy(pixels) for pixels in (lr, hr)]
        return cls(row, *(tensor.pin_memory() if pinned else tensor for tensor in tensors))


def local_batches(
    stream: BatchStream, rows: range, threads: int = 1, pinned: bool = False
) -> Generator[Batch, None, None]:
    """Batches of these rows, made by threads of this process. A GPU copies pinned ones while it computes."""

    def make(row: int) -> Batch:
        lr, hr = stream.batches([row])
        return Batch.of(row, lr[0], hr[0], pinned)

    return prefetch_map(make, rows, threads)


def ray_data_batches(stream: BatchStream, rows: range, pinned: bool = False) -> Generator[Batch, None, None]:
    """Batches of these rows, made by Ray Data's tasks and completed by a thread of this process."""
    blocks = _blocks(stream, rows)

    def take(_: None) -> list[Batch] | None:
        block = next(blocks, None)
        return None if block is None else _completed(stream, block, pinned)

    for batches in prefetch_map(take, itertools.repeat(None), 1):
        if batches is None:
            return
        yield from batches


def _blocks(stream: BatchStream, rows: range) -> Iterator[Block]:
    """The rows in blocks of several: the tasks of a segment begin when the one before it has begun to arrive."""
    shared = ray.put(stream)  # once into the memory that a node's processes share, not along with each task

    def begin(segment: range) -> Iterator[Block]:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True  # as tasks end, the rows would come in any order
        context.enable_progress_bars = context.print_on_execution_start = False
        # Whole blocks, because Ray Data takes a millisecond or two to cut a block into rows.
        dataset = batch_dataset(stream, shared, segment)
        blocks = iter(dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))
        return itertools.chain([next(blocks)], blocks)  # the first one starts the tasks of all

    for blocks in prefetch_map(begin, segments(stream, rows), threads=1, ahead=1):
        yield from blocks


def _completed(stream: BatchStream, block: Block, pinned: bool) -> list[Batch]:
    """The rows of a block, copied because the object store is read-only."""
    rows, hr = block["row"].tolist(), block["hr"].copy()
    lr = block["lr"].copy() if "lr" in block else [stream.degrade(*pair) for pair in zip(rows, hr, strict=True)]
    return [Batch.of(*row, pinned) for row in zip(rows, lr, hr, strict=True)]


def spare_threads(cpus: float) -> int:
    """Threads that make batches beside training: half of a worker's CPUs, one at least."""
    return max(1, int(cpus) // 2)
