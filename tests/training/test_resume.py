"""Resumed runs: stages that are added, ended early or moved, other data, damaged checkpoints."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_sr.errors import InputError, ModelError, RecipeError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import load_model
from ray_sr.training.compute import Compute
from ray_sr.training.resume import find_resumable
from ray_sr.training.runs import Run
from ray_sr.training.state import GENERATOR_FILE, STATE_FILE, DamagedCheckpointError, TrainState

RECIPE = """
name: tiny
scale: 2
data: {crop: 32, batch: 2, crops_per_image: 1}
generator: {kind: srresnet, blocks: 1, channels: 8}
discriminator: {kind: srgan, channels: 4, hidden: 8}
pretrain: {steps: 4, losses: [{kind: l1}], optimizer: {lr: 1e-3}}
gan: {steps: 3, losses: [{kind: l1}]}
"""
CPU = Compute(torch.device("cpu"), None, torch.contiguous_format)
NO_GAN = ("gan=null", "discriminator=null")


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def trained(made_for: Recipe, steps: int) -> TrainState:
    """As after so many steps, with moved weights."""
    state = TrainState(made_for, CPU)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in state.generator.parameters():
                parameter += 0.01
        state.advance()
    return state


def saved(made_for: Recipe, steps: int, folder: Path) -> Path:
    """The run folder with one checkpoint after so many steps."""
    checkpoint = folder / f"checkpoint_{steps:08d}"
    checkpoint.mkdir(parents=True)
    trained(made_for, steps).snapshot().write(checkpoint)
    return checkpoint


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize(
    ("before", "steps", "now"),
    [(NO_GAN, 4, ()), ((), 3, ("pretrain.steps=3",)), (("gan=null",), 4, ("gan.steps=6",))],
    ids=["a GAN stage added", "pre-training ended early", "a discriminator was there already"],
)
def test_the_gan_stage_begins_where_pretraining_was_ended(
    before: tuple[str, ...], steps: int, now: tuple[str, ...], tmp_path: Path
) -> None:
    """As if pre-training had had so many steps from the beginning."""
    folder = saved(recipe(*before), steps, tmp_path)
    state = TrainState(recipe(*now), CPU)
    state.load(folder)
    assert (state.stage, state.step_of_stage) == ("gan", 0)
    expected = trained(recipe(f"pretrain.steps={steps}"), steps)
    assert torch.equal(weights(state.generator), weights(expected.generator))
    assert torch.equal(weights(state.ema), weights(state.generator))
    assert state.pretrained is not None
    assert torch.equal(torch.cat([v.flatten() for v in state.pretrained.values()]), weights(state.ema))
    assert state.discriminator_optimizer is not None
    assert state.generator_optimizer is not None
    assert not state.generator_optimizer.inner.state  # nothing of the pre-training's moments


@pytest.mark.parametrize(
    ("steps", "now", "message"),
    [
        (6, ("pretrain.steps=20",), "the GAN stage began at step 4: pretrain.steps cannot become 20"),
        (6, ("pretrain.steps=2",), "the GAN stage began at step 4: pretrain.steps cannot become 2"),
        (6, ("pretrain=null",), "the GAN stage began at step 4: pretrain.steps cannot become 0"),
        (6, NO_GAN, "at step 6, in its GAN stage, and the recipe has no gan"),
        (3, ("pretrain.steps=2",), "3 steps of pre-training are done, pretrain.steps is 2: give pretrain.steps=3"),
        (3, ("pretrain=null",), "3 steps of pre-training are done, pretrain.steps is 0"),
    ],
)
def test_a_border_that_was_passed_stays(steps: int, now: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = saved(recipe(), steps, tmp_path)
    with pytest.raises(RecipeError, match=message):
        TrainState(recipe(*now), CPU).load(folder)


@pytest.mark.parametrize("steps", [0, 3, 4, 6, 7])
def test_a_stage_goes_on_as_it_was(steps: int, tmp_path: Path) -> None:
    folder = saved(recipe(), steps, tmp_path)
    state, expected = TrainState(recipe(), CPU), trained(recipe(), steps)
    state.load(folder)
    assert (state.stage, state.step) == (expected.stage, expected.step)
    assert torch.equal(weights(state.generator), weights(expected.generator))
    assert (state.discriminator_optimizer is None) == (expected.discriminator_optimizer is None)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    """One byte of a tensor."""
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        at = data.index(archive.read(largest)) + largest.file_size // 2
    data[at] ^= 1
    file.write_bytes(bytes(data))


def removed(file: Path) -> None:
    shutil.rmtree(file.parent)


def note_of(folder: Path, *names: str) -> None:
    """What Ray Train writes beside its checkpoints."""
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    note = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(note))


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, removed], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("noted", [True, False])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(damage: Any, noted: bool, tmp_path: Path) -> None:
    names = [saved(recipe(), steps, tmp_path).name for steps in (1, 2, 3)]
    if noted:
        note_of(tmp_path, *names)
    damage(tmp_path / names[-1] / STATE_FILE)
    run = Run(tmp_path)
    found = find_resumable(run, recipe())
    assert found is not None
    assert found.name == names[1]
    assert list(found.damaged) == ([] if damage is removed else [names[2]])
    assert run.go_on_from(found.name) == f"{tmp_path}/{names[1]}"
    assert not (tmp_path / "checkpoint_manager_snapshot.json").exists()
    run.set_damaged_aside(found.damaged)
    assert run.checkpoints() == [names[1], names[0]]


def test_a_whole_checkpoint_that_ray_noted_stays_its_own_affair(tmp_path: Path) -> None:
    names = [saved(recipe(), steps, tmp_path).name for steps in (1, 2, 3)]
    note_of(tmp_path, *names[:2])  # the third was written, and not noted any more
    found = find_resumable(Run(tmp_path), recipe())
    assert found is not None
    assert found.name == names[1]
    assert Run(tmp_path).go_on_from(found.name) is None
    assert (tmp_path / "checkpoint_manager_snapshot.json").exists()


def test_damage_everywhere_and_other_networks_are_told(tmp_path: Path) -> None:
    assert find_resumable(Run(tmp_path), recipe()) is None
    for steps in (1, 2):
        emptied(saved(recipe(), steps, tmp_path) / STATE_FILE)
    with pytest.raises(DamagedCheckpointError, match=r"no checkpoint can be read: .*checkpoint_00000002"):
        find_resumable(Run(tmp_path), recipe())
    saved(recipe(), 3, tmp_path)
    with pytest.raises(ModelError, match="belong to another network"):
        find_resumable(Run(tmp_path), recipe("generator.blocks=2"))


def test_the_generator_of_pretraining_is_never_that_of_the_gan(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recipe_file.parent.mkdir(exist_ok=True)
    run.recipe_file.write_text(RECIPE)
    checkpoint = saved(recipe(), 6, tmp_path)
    assert load_model(run.generator("pretrain")).version != load_model(run.generator()).version
    run.journal.write_text(json.dumps({"event": "train", "step": 6, "stage": "gan"}) + "\n")
    (checkpoint / "pretrained.safetensors").unlink()
    with pytest.raises(InputError, match="no generator of pre-training was kept"):
        run.generator("pretrain")
    saved(recipe(), 7, tmp_path)
    (tmp_path / "checkpoint_00000007" / GENERATOR_FILE).unlink()
    assert run.generator() == checkpoint / GENERATOR_FILE


@pytest.mark.parametrize("text", ['{"data_digest": "12', "", "\0\0\0"])
def test_a_cut_run_json_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: not readable: .*--resume"):
        Run(tmp_path).facts()
