"""A step that does not fit into memory: what would fit is tried out, and told in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training.memory import smaller_sizes
from ray_sr.training.state import TrainState
from ray_sr.training.steps import MicroBatch
from ray_sr.training.worker import Worker
from tests.training.test_steps import FLOAT32

RECIPE = """
name: large
scale: 2
data: {crop: 32, batch: 32, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 9}
training: {accumulate: 2}
"""


class Step:
    """A step for which memory suffices up to some crops at once."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most, self.error = most, error
        self.tried: list[list[int]] = []

    def run(self, parts: list[MicroBatch], number: int) -> dict[str, torch.Tensor]:
        self.tried.append([len(part.lr) for part in parts])
        if self.error:
            raise self.error
        if any(len(part.lr) > self.most for part in parts):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {}


def worker_with(step: Step, world: int = 1) -> Any:
    worker: Any = Worker.__new__(Worker)
    worker.recipe = parse_recipe(RECIPE)
    worker.state = TrainState(worker.recipe, FLOAT32)
    worker.step, worker.world, worker.compute = step, world, FLOAT32
    return worker


def parts() -> list[MicroBatch]:
    return [MicroBatch(torch.zeros(16, 3, 16, 16), torch.zeros(16, 3, 32, 32)) for _ in range(2)]


def test_the_number_of_crops_that_fits_is_found_and_what_to_set_for_it() -> None:
    step = Step(most=5)
    with pytest.raises(ResourceError, match=r"step 0: 16 crops at once .*: 4 do: set training\.accumulate=8"):
        worker_with(step)._train_step(parts())
    assert step.tried == [[16, 16], [8, 8], [4, 4]]


def test_what_never_fits_is_told() -> None:
    with pytest.raises(ResourceError, match=r"16 crops at once .*: use smaller networks"):
        worker_with(Step(most=1))._train_step(parts())


def test_a_worker_among_others_tries_nothing() -> None:
    step = Step(most=5)
    with pytest.raises(ResourceError, match=r"set training\.accumulate=4 or more"):
        worker_with(step, world=2)._train_step(parts())
    assert len(step.tried) == 1


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        worker_with(Step(16, RuntimeError("shape mismatch")))._train_step(parts())
    told = "upsample_backward does not have a deterministic implementation, but you set ..."
    with pytest.raises(RecipeError, match=r"training\.deterministic: upsample_backward .*set it to false"):
        worker_with(Step(16, RuntimeError(told)))._train_step(parts())


@pytest.mark.parametrize(
    ("crops", "multiple", "sizes"), [(16, 4, [8, 4]), (24, 4, [12, 8, 4]), (4, 4, []), (1, 1, [])]
)
def test_sizes_are_whole_sub_images_and_divide_the_crops(crops: int, multiple: int, sizes: list[int]) -> None:
    assert smaller_sizes(crops, multiple) == sizes
