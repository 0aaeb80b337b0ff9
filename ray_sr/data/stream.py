"""An endless, ordered stream of training batches, made by Ray Data tasks or in the training worker.

A row of the stream is a part of a step's batch, as a worker computes it at once. Row numbers lead to
sub-images through a shuffled order for each epoch, so the stream has no seam between epochs and can start at
any row, and it is the same stream wherever its batches are made.

Where that is (`data.degrade_in`): a task of Ray Data can run on any CPU of the cluster and costs some 3 ms a
batch beyond the crops themselves, for the task and for the way of its pixels through the object store. In
the worker, a thread cuts and degrades views of the object store while the networks compute. So `auto` takes
the worker where sub-images are kept in memory on a single node and crops are made, measured on this machine,
within `WORKER_NANOSECONDS` for each of their pixels; else it takes tasks. Sub-images that are streamed from
storage are decoded and cut by tasks in either case; `worker` then leaves the degradation to the worker.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import ray
from ray.data import Dataset

from ray_sr.cluster import is_one_node
from ray_sr.data.crops import CropPlan, SubImage, Visit, cut_crops, degrade_crops, make_crops
from ray_sr.data.pixels import CachedPixels, Index, Pixels, open_pixels, read_index
from ray_sr.data.prefetch import single_threaded
from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.recipe import Recipe

Place = Literal["tasks", "worker"]

VISITS_PER_TASK = 64  # a Ray Data task costs some 15-20 ms, a visit a few: enough to hide the former
LARGEST_BLOCK = 32 << 20
SEGMENT_BLOCKS = 2000  # Ray Data plans them in a second or two, and 20,000 in a minute
# What making an HR pixel may cost in a worker's thread. A training step takes longer on every device, so the
# thread keeps up; bicubic shrinking takes some 10, the second-order degradation 500.
WORKER_NANOSECONDS = 60.0
_PROBED_CROPS, _PROBES = 8, 3

_opened: dict[str, BatchStream] = {}  # streams of this process, so that not each task unpacks its own


@dataclass(frozen=True)
class BatchStream:
    """Makes the batch of any row number. `first_row` is asked anew by each task: a run goes on from there."""

    index: Index
    pixels: Pixels
    plan: CropPlan
    visits: int
    first_row: Callable[[], int]
    place: Place = "tasks"
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def cached(self) -> bool:
        """Whether decoded sub-images are kept in the object store."""
        return isinstance(self.pixels, CachedPixels)

    @property
    def by_tasks(self) -> bool:
        """Whether Ray Data's tasks do a part of the work."""
        return self.place == "tasks" or not self.cached

    def batches(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(LR uint8 R×N×h×w×3, HR uint8 R×N×H×W×3) of these rows, crops of `visits` sub-images in each."""
        numbers, visits = self._visits(rows)
        lr, hr = make_crops(visits, self.pixels.fetch(numbers), self.plan)
        return _by_row(lr, rows), _by_row(hr, rows)

    def cut(self, rows: Sequence[int]) -> np.ndarray:
        """The HR crops of `batches` alone, for `degrade` to complete."""
        numbers, visits = self._visits(rows)
        return _by_row(cut_crops(visits, self.pixels.fetch(numbers), self.plan), rows)

    def degrade(self, row: int, hr: np.ndarray) -> np.ndarray:
        """LR uint8 N×h×w×3 of a row whose HR crops were cut elsewhere."""
        return degrade_crops(hr, self._visits([row])[1], self.plan)

    def _visits(self, rows: Sequence[int]) -> tuple[list[int], list[Visit]]:
        """Numbers in the index of the sub-images that these rows visit, and the visits."""
        positions = [divmod(row * self.visits + i, len(self.index)) for row in rows for i in range(self.visits)]
        orders = {epoch: self.pixels.order(self.plan.seed, epoch) for epoch in {epoch for epoch, _ in positions}}
        chosen = [(epoch, int(orders[epoch][position])) for epoch, position in positions]
        return [number for _, number in chosen], [self.index.visit(number, epoch) for epoch, number in chosen]


def _by_row(crops: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    return crops.reshape(len(rows), -1, *crops.shape[1:])


def open_stream(recipe: Recipe, shards: str, first_row: Callable[[], int]) -> BatchStream:
    """The training stream of a recipe over a shard set; Ray must be running."""
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
        place = choose_place(plan) if isinstance(pixels, CachedPixels) else "tasks"
    return BatchStream(index, pixels, plan, visits, first_row, place)


def choose_place(plan: CropPlan) -> Place:
    """The faster place for batches of sub-images that are kept in memory: see the module's docstring."""
    return "worker" if is_one_node() and nanoseconds_per_pixel(plan) <= WORKER_NANOSECONDS else "tasks"


def nanoseconds_per_pixel(plan: CropPlan) -> float:
    """CPU time of one thread for making crops, for each HR pixel: the best of a few trials on made-up pixels."""
    few = replace(plan, crops_per_image=_PROBED_CROPS)
    pixels = np.random.default_rng(0).integers(0, 256, (plan.crop, plan.crop, 3), np.uint8)
    images = [SubImage(pixels, pixels[:: plan.scale, :: plan.scale])]

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


def segment_rows(stream: BatchStream, rows: int, rows_per_step: int) -> int:
    """Rows of the Ray Data set that is to make `rows` rows: all, or else some whole steps, again and again."""
    most = SEGMENT_BLOCKS * _rows_per_block(stream)
    return min(rows, max(1, most // rows_per_step) * rows_per_step)


def batch_dataset(stream: BatchStream, rows: int) -> Dataset:
    """Ray Data set of `rows` rows in their order: row (int64), hr (uint8 N×H×W×3), lr (uint8 N×h×w×3).

    lr is absent where the worker is to degrade.
    """
    numbered = ray.data.range(rows, override_num_blocks=math.ceil(rows / _rows_per_block(stream)))
    task = partial(_make_rows, token=stream.token, kept=[ray.put(stream)])
    return numbered.map_batches(task, batch_size=None, num_cpus=1)


def _rows_per_block(stream: BatchStream) -> int:
    hr_bytes = stream.visits * stream.plan.crops_per_image * stream.plan.crop**2 * 3
    return max(1, min(VISITS_PER_TASK // stream.visits, LARGEST_BLOCK // hr_bytes))


def _make_rows(block: dict[str, np.ndarray], *, token: str, kept: list[Any]) -> dict[str, np.ndarray]:
    if token not in _opened:
        _opened.clear()
        _opened[token] = ray.get(kept[0])
    stream = _opened[token]
    rows = (block["id"] + stream.first_row()).astype(np.int64)
    if stream.place == "worker" and not stream.plan.paired:
        return {"row": rows, "hr": stream.cut(rows.tolist())}
    lr, hr = stream.batches(rows.tolist())
    return {"row": rows, "lr": lr, "hr": hr}
