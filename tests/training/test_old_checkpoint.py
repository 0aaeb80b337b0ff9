"""A checkpoint of version 0.1.0, made before the modules had their present places, goes on as it did then.

checkpoint_of_0.1.0/: `Snapshot.write` after 4 of 5 steps, its recipe, and what that version made of the fifth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ray_sr.models.weights import load_generator
from ray_sr.recipes.reader import load_recipe
from ray_sr.training.state import GENERATOR_FILE, PRETRAINED_FILE, TrainState, step_seed
from ray_sr.training.steps import MicroBatch
from tests.training.test_steps import FLOAT32, gan_step

OLD = Path(__file__).parent / "checkpoint_of_0.1.0"


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the old version was trained on at this step."""
    hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.avg_pool2d(hr, 2), hr


def test_it_goes_on_as_its_own_version_did() -> None:
    recipe = load_recipe(str(OLD / "recipe.yaml"))
    state = TrainState(recipe, FLOAT32)
    state.load(OLD)
    assert (state.step, state.stage) == (4, "gan")
    micro_batch = MicroBatch(*batch(4), step_seed(recipe.seed, 0, 4))
    losses = gan_step(state).run([micro_batch], state.step_of_stage)
    state.advance()
    assert state.done
    then = json.loads((OLD / "next.json").read_text())
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(then["losses"], rel=1e-4)
    assert float(state.ema(batch(0)[0]).mean()) == pytest.approx(then["mean"], rel=1e-4)


def test_its_generators_can_be_used() -> None:
    low = batch(0)[0]
    outputs = [load_generator(str(OLD / name))[0](low) for name in (GENERATOR_FILE, PRETRAINED_FILE)]
    assert all(output.shape == (2, 3, 32, 32) for output in outputs)
    assert not torch.equal(*outputs)
