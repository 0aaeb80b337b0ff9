"""An endless, ordered stream of training batches, made by Ray Data tasks or in the training worker.

A row of the stream is a part of a step's batch, as a worker computes it at once. Row numbers lead to
sub-images through a shuffled order for each epoch, so the stream has no seam between epochs and can start at
any row, and it is the same stream wherever its batches are made. Which rows a step has follows from its number
alone; each of several workers takes every so manieth row and asks for those by number, so nothing is dealt out.

Where that is (`data.degrade_in`): a task of Ray Data can run on any CPU of the cluster and costs some 3 ms a
batch beyond the crops themselves, for the task and for the way of its pixels through the object store. In
the worker, a thread cuts and degrades views of the object store while the networks compute. So `auto` takes
the worker where sub-images are kept in memory on a single node and crops are made, measured on this machine,
within `WORKER_NANOSECONDS` for each of their pixels; else, and where a GPU waits for what the worker's thread
launches, it takes tasks. Sub-images that are streamed from
storage are decoded and cut by tasks in either case; `worker` then leaves the degradation to the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import ray
from ray.data import Dataset

from ray_sr.cluster import is_one_node, task_cpus
from ray_sr.data.crops import CropPlan, SubImage, Visit, cut_crops, degrade_crops, make_crops
from ray_sr.data.manifest import Depth
from ray_sr.data.pixels import CachedPixels, Index, Pixels, open_pixels, read_index
from ray_sr.data.prefetch import single_threaded
from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.recipe import Recipe

Place = Literal["tasks", "worker"]

VISITS_PER_TASK = 64  # a Ray Data task costs some 15-20 ms, a visit a few: enough to hide the former
LARGEST_BLOCK = 32 << 20
# Of a Ray Data set: more would be longer to plan (some 2 ms each), and less bounded in what is made ahead.
SEGMENT_BLOCKS = 32
SEGMENT_BYTES = 256 << 20
# What making an HR pixel may cost in a worker's thread. A training step takes longer on every device, so the
# thread keeps up; bicubic shrinking takes some 10, the second-order degradation 500.
WORKER_NANOSECONDS = 60.0
_PROBED_CROPS, _PROBES = 8, 3


@dataclass(frozen=True)
class BatchStream:
    """Makes the batch of any row number."""

    index: Index
    pixels: Pixels
    plan: CropPlan
    visits: int
    place: Place = "tasks"

    @property
    def cached(self) -> bool:
        """Whether decoded sub-images are kept in the object store."""
        return isinstance(self.pixels, CachedPixels)

    @property
    def by_tasks(self) -> bool:
        """Whether Ray Data's tasks do a part of the work."""
        return self.place == "tasks" or not self.cached

    def batches(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(LR R×N×h×w×3, HR R×N×H×W×3) of these rows, in the shards' dtype, of `visits` sub-images in each."""
        numbers, visits = self._visits(rows)
        lr, hr = make_crops(visits, self.pixels.fetch(numbers), self.plan)
        return _by_row(lr, rows), _by_row(hr, rows)

    def cut(self, rows: Sequence[int]) -> np.ndarray:
        """The HR crops of `batches` alone, for `degrade` to complete."""
        numbers, visits = self._visits(rows)
        return _by_row(cut_crops(visits, self.pixels.fetch(numbers), self.plan), rows)

    def degrade(self, row: int, hr: np.ndarray) -> np.ndarray:
        """LR N×h×w×3 of a row whose HR crops were cut elsewhere."""
        return degrade_crops(hr, self._visits([row])[1], self.plan)

    def _visits(self, rows: Sequence[int]) -> tuple[list[int], list[Visit]]:
        """Numbers in the index of the sub-images that these rows visit, and the visits."""
        positions = [divmod(row * self.visits + i, len(self.index)) for row in rows for i in range(self.visits)]
        orders = {epoch: self.pixels.order(self.plan.seed, epoch) for epoch in {epoch for epoch, _ in positions}}
        chosen = [(epoch, int(orders[epoch][position])) for epoch, position in positions]
        return [number for _, number in chosen], [self.index.visit(number, epoch) for epoch, number in chosen]


def _by_row(crops: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    return crops.reshape(len(rows), -1, *crops.shape[1:])


def open_stream(recipe: Recipe, shards: str, gpu: bool = False) -> BatchStream:
    """The training stream of a recipe over a shard set, for workers with or without a GPU; Ray must be running."""
    index = read_index(shards, "train", recipe.data.crop, skip_damaged=recipe.data.damaged == "skip")
    if not len(index):
        raise RecipeError(
            f"data.crop {recipe.data.crop}: no sub-image in {shards} is that large: use a smaller crop"
        )
    plan = CropPlan.of(recipe)
    _check_pairs(plan, index, shards)
    visits = recipe.data.batch // recipe.rows_per_step // recipe.data.crops_per_image
    pixels = open_pixels(index, recipe.data.cache)
    place = recipe.data.degrade_in
    if place == "auto":
        place = choose_place(plan, gpu, index.depth) if isinstance(pixels, CachedPixels) else "tasks"
    return BatchStream(index, pixels, plan, visits, place)


def choose_place(plan: CropPlan, gpu: bool = False, depth: Depth = 8) -> Place:
    """The faster place for batches of sub-images that are kept in memory: see the module's docstring."""
    if gpu or not is_one_node():
        return "tasks"
    return "worker" if nanoseconds_per_pixel(plan, depth) <= WORKER_NANOSECONDS else "tasks"


def made_up(side: int, scale: int, depth: Depth, seed: int) -> SubImage:
    """Noise to measure with, in the dtype of shards of this depth."""
    pixels = np.random.default_rng(seed).integers(0, 1 << depth, (side, side, 3), f"u{depth // 8}")
    return SubImage(pixels, pixels[::scale, ::scale])


def nanoseconds_per_pixel(plan: CropPlan, depth: Depth = 8) -> float:
    """CPU time of one thread for making crops, for each HR pixel: the best of a few trials on made-up pixels."""
    few = replace(plan, crops_per_image=_PROBED_CROPS)
    images = [made_up(plan.crop, plan.scale, depth, 0)]

    def spend(epoch: int) -> int:
        began = time.thread_time_ns()
        make_crops([Visit(0, epoch, plan.crop, plan.crop)], images, few)
        return time.thread_time_ns() - began

    with single_threaded(1) as pool:
        return min(pool.map(spend, range(_PROBES + 1))) / _PROBED_CROPS / plan.crop**2


def _check_pairs(plan: CropPlan, index: Index, shards: str) -> None:
    if not plan.paired:
        return
    if not index.input_scale:
        raise InputError(f"{shards}: degradation pairs needs input photos: `ray-sr data prepare --inputs FOLDER`")
    if index.input_scale != plan.scale:
        raise RecipeError(f"scale {plan.scale}: the input photos in {shards} are for x{index.input_scale}")


def segments(stream: BatchStream, rows: range) -> Iterator[range]:
    """These rows in pieces, each to be made by a Ray Data set of its own: what is made ahead stays bounded."""
    per_block = _rows_per_block(stream)
    blocks = max(1, min(SEGMENT_BLOCKS, SEGMENT_BYTES // (per_block * _hr_bytes(stream))))
    return (rows[first : first + blocks * per_block] for first in range(0, len(rows), blocks * per_block))


def batch_dataset(stream: BatchStream, shared: Any, rows: range) -> Dataset:
    """Ray Data set of these rows in their order: row (int64), hr (N×H×W×3) and lr (N×h×w×3) in the shards' dtype.

    lr is absent where the worker is to degrade. `shared` is the stream in the object store.
    """
    # The set holds numbers alone. A task looks up the sub-images of its numbers itself: finished crops are all that
    # is sent, and what a row holds depends on nothing but its number, so that a lost task is simply run again.
    numbers = ray.data.from_items(list(rows), override_num_blocks=math.ceil(len(rows) / _rows_per_block(stream)))
    make = partial(_make_rows, shared=[shared])
    return numbers.map_batches(make, batch_size=None, num_cpus=task_cpus())


def _rows_per_block(stream: BatchStream) -> int:
    return max(1, min(VISITS_PER_TASK // stream.visits, LARGEST_BLOCK // _hr_bytes(stream)))


def _hr_bytes(stream: BatchStream) -> int:
    return stream.visits * stream.plan.crops_per_image * stream.plan.crop**2 * 3 * stream.index.depth // 8


@lru_cache(maxsize=1)
def _opened(shared: Any) -> BatchStream:
    """The stream in this process: Ray keeps its processes, so many tasks share what the first has unpacked."""
    stream: BatchStream = ray.get(shared)
    return stream


def _make_rows(block: dict[str, np.ndarray], *, shared: list[Any]) -> dict[str, np.ndarray]:
    stream = _opened(shared[0])
    numbers = block["item"].tolist()
    row = np.array(numbers, np.int64)
    if stream.place == "worker" and not stream.plan.paired:
        return {"row": row, "hr": stream.cut(numbers)}
    lr, hr = stream.batches(numbers)
    return {"row": row, "lr": lr, "hr": hr}
