"""What a checkpoint holds: all that is needed to go on training as if nothing had happened.

Random numbers are no state: those of a step follow from (seed, step, part of the batch), so a run goes on
exactly, also with another number of workers.
"""

from __future__ import annotations

import copy
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ray_sr.errors import ModelError, RecipeError
from ray_sr.models import build_discriminator, build_generator
from ray_sr.models.weights import check_archive, encode_weights, load_strict
from ray_sr.recipes.networks import NetworkSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import first_line
from ray_sr.training.compute import Compute
from ray_sr.training.optimizer import EmaUpdate, GuardedOptimizer, ema_decay

StageName = Literal["pretrain", "gan"]
STATE_FILE = "state.pt"
GENERATOR_FILE = "generator.safetensors"
PRETRAINED_FILE = "pretrained.safetensors"


class DamagedCheckpointError(ModelError):
    """A checkpoint that cannot be read. Exit code 5."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, which further steps do not change."""

    step: int
    state: dict[str, Any]
    network: NetworkSpec

    def write(self, folder: Path) -> None:
        """state.pt, and the averaged generator as a weights file of its own (as before the GAN, too)."""
        torch.save(self.state, folder / STATE_FILE)
        (folder / GENERATOR_FILE).write_bytes(encode_weights(self.state["average"], self.network))
        if self.state["pretrained"] is not None:
            (folder / PRETRAINED_FILE).write_bytes(encode_weights(self.state["pretrained"], self.network))


class TrainState:
    """Both networks, the averaged generator, the optimizers of the stage, and the step (of the whole run)."""

    def __init__(self, recipe: Recipe, compute: Compute) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.compute = recipe, compute
        self.step = 0
        self.best: dict[str, list[float]] = {}  # the highest PSNR-Y of each stage
        self.generator = compute.place(build_generator(recipe.network))
        self.discriminator: nn.Module | None = None
        if recipe.gan and recipe.discriminator:
            critic = build_discriminator(recipe.discriminator, recipe.data.crop, recipe.value_range)
            self.discriminator = compute.place(critic)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._ema_update = EmaUpdate(self.ema, self.generator)
        self.pretrained: dict[str, torch.Tensor] | None = None
        self.generator_optimizer: GuardedOptimizer | None = None
        self.discriminator_optimizer: GuardedOptimizer | None = None
        self._enter_stage()

    @property
    def stage(self) -> StageName:
        """The stage that the next step belongs to; the last one when all steps are done."""
        return "pretrain" if self.step < self.pretrain_steps or self.recipe.gan is None else "gan"

    @property
    def pretrain_steps(self) -> int:
        return self.recipe.pretrain.steps if self.recipe.pretrain else 0

    @property
    def step_of_stage(self) -> int:
        return self.step - (self.pretrain_steps if self.stage == "gan" else 0)

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.total_steps

    def load_generator(self, weights: dict[str, torch.Tensor]) -> None:
        """InitialWeights from the weights of a published generator; what it lacks stays as it was drawn."""
        whole = {**self.generator.state_dict(), **weights}
        load_strict(self.generator, whole)
        load_strict(self.ema, whole)

    def load_discriminator(self, weights: dict[str, torch.Tensor]) -> None:
        """Start from the weights of another run's discriminator."""
        assert self.discriminator is not None
        load_strict(self.discriminator, weights, "init_discriminator")

    def advance(self) -> bool:
        """Count a finished step and average the weights. True where the next step begins another stage."""
        if self.generator_optimizer and self.generator_optimizer.averages:
            with self.generator_optimizer.averaged():
                self._ema_update.run(0.0)
        else:
            self._ema_update.run(ema_decay(self.recipe.training.ema, self.step))
        before = self.stage
        self.step += 1
        if self.done or self.stage == before:
            return False
        self._begin_gan()
        return True

    def _begin_gan(self) -> None:
        """The averaged generator of pre-training is kept, and what the GAN stage starts from."""
        self.pretrained = {name: value.clone() for name, value in self.ema.state_dict().items()}
        self.generator.load_state_dict(self.ema.state_dict())
        self._enter_stage()

    def _enter_stage(self) -> None:
        recipe, clip = self.recipe, self.recipe.training.clip_gradients
        if self.stage == "pretrain" and recipe.pretrain:
            stage = recipe.pretrain
            self.generator_optimizer = GuardedOptimizer(
                list(self.generator.parameters()), stage.optimizer, stage.schedule, stage.steps, clip
            )
        elif recipe.gan and self.discriminator:
            gan = recipe.gan
            self.generator_optimizer = GuardedOptimizer(
                list(self.generator.parameters()), gan.generator_optimizer, gan.schedule, gan.steps, clip
            )
            self.discriminator_optimizer = GuardedOptimizer(
                list(self.discriminator.parameters()),
                gan.discriminator_optimizer,
                gan.schedule,
                gan.steps,
                clip,
            )

    def snapshot(self) -> Snapshot:
        """All that `load` needs, copied to the CPU."""
        return Snapshot(self.step, _copied(self._dump()), self.recipe.network)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint.

        One from pre-training whose last step the recipe has reached begins the GAN stage. Raises
        DamagedCheckpointError where it cannot be read, ModelError where it belongs to other networks, and
        RecipeError where the recipe moves the border between the stages behind what has been trained.
        """
        path = folder / STATE_FILE
        saved = _read(path)
        stage: StageName = "gan" if saved["discriminator_optimizer"] is not None else "pretrain"
        self._check_border(saved, stage)
        self.step = saved["step"]
        self.best = saved["best"]
        load_strict(self.generator, saved["generator"], str(path))
        load_strict(self.ema, saved["average"], str(path))
        self._load_discriminator(saved, stage, str(path))
        self.pretrained = saved["pretrained"]
        if stage != self.stage:
            self._begin_gan()
            return
        self._enter_stage()
        for name in ("generator_optimizer", "discriminator_optimizer"):
            optimizer = getattr(self, name)
            if optimizer is not None and saved[name] is not None:
                _load_optimizer(optimizer, saved[name], path)

    def _check_border(self, saved: dict[str, Any], stage: StageName) -> None:
        step = saved["step"]
        if stage == "pretrain":
            if step > self.pretrain_steps:
                raise RecipeError(
                    f"{step} steps of pre-training are done, pretrain.steps is {self.pretrain_steps}: give "
                    f"pretrain.steps={step} to end pre-training here, or more"
                )
            return
        before = saved["recipe"]["pretrain"]
        begun = before["steps"] if before else 0
        if self.recipe.gan is None:
            raise RecipeError(
                f"the run is at step {step}, in its GAN stage, and the recipe has no gan: leave it in"
            )
        if begun != self.pretrain_steps:
            raise RecipeError(
                f"the GAN stage began at step {begun}: pretrain.steps cannot become {self.pretrain_steps} any more"
            )

    def _load_discriminator(self, saved: dict[str, Any], stage: StageName, source: str) -> None:
        """Before the GAN stage it is as it was drawn, and the recipe may ask for another one."""
        if self.discriminator is None or (stage == "pretrain" and saved["discriminator"] is None):
            return
        if stage == "gan" or saved["recipe"]["discriminator"] == self.recipe.dump()["discriminator"]:
            load_strict(self.discriminator, saved["discriminator"], source)

    def _dump(self) -> dict[str, Any]:
        def of(part: nn.Module | GuardedOptimizer | None) -> dict[str, Any] | None:
            return None if part is None else part.state_dict()

        return {
            "step": self.step,
            "best": self.best,
            "recipe": self.recipe.dump(),
            "generator": of(self.generator),
            "average": of(self.ema),
            "pretrained": self.pretrained,
            "discriminator": of(self.discriminator),
            "generator_optimizer": of(self.generator_optimizer),
            "discriminator_optimizer": of(self.discriminator_optimizer),
        }


def _read(path: Path) -> dict[str, Any]:
    """What `Snapshot.write` put there."""
    try:
        if not zipfile.is_zipfile(path):  # nothing else is written here
            raise zipfile.BadZipFile("the file is empty, cut short or of another kind")
        check_archive(path)
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise DamagedCheckpointError(f"{path}: not a readable checkpoint: {first_line(error)}") from None
    return saved


def _load_optimizer(optimizer: GuardedOptimizer, state: dict[str, Any], source: Path) -> None:
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise ModelError(f"{source}: {error}: go on with the optimizer that the run began with") from None


def _copied(value: Any) -> Any:
    """Nested dicts and lists with tensors of their own on the CPU, as torch.save takes them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def step_seed(seed: int, row: int, step: int) -> int:
    """Seed of everything random in one part of a step's batch (dropout, label noise)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0x2545F4914F6CDD1D + row * 0x100000001B3) & ((1 << 63) - 1)
