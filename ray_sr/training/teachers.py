"""Teachers of distillation: other models whose output the generator is to come near."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.models import Generator, folded
from ray_sr.models.weights import generator_from_state
from ray_sr.recipes.losses import DistillSpec
from ray_sr.recipes.networks import NetworkSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import load_model
from ray_sr.training.compute import Compute
from ray_sr.upscaling.precision import try_out

_TENSORS_AT_ONCE = 4  # input, output and work space of a layer, and what a skip holds, each as large as the largest


@dataclass(frozen=True)
class Teacher:
    """A model as it goes to the workers: `weights` of `network`, or neither where it is not one of ours.

    Those are opened by each worker itself: they hold code, or a program's own objects.
    """

    ref: str
    network: NetworkSpec | None
    weights: dict[str, Tensor] | None


def check_teachers(recipe: Recipe) -> dict[str, Teacher]:
    """The teachers that the recipe's losses name, by that name.

    Raises RecipeError for one of another scale, ResourceError for one that needs more memory for a batch than
    this machine has, and the errors of `load_model`.
    """
    return {spec.teacher: _checked(where, spec, recipe) for where, spec in _distillations(recipe)}


def place_teachers(teachers: dict[str, Teacher], compute: Compute) -> dict[str, nn.Module]:
    """The teachers ready to run in a worker: folded, in evaluation mode, on its device."""
    return {ref: compute.place(folded(_build(teacher))) for ref, teacher in teachers.items()}


def _distillations(recipe: Recipe) -> list[tuple[str, DistillSpec]]:
    return [
        (f"{name}.losses.{number}", loss)
        for name, stage in (("pretrain", recipe.pretrain), ("gan", recipe.gan))
        for number, loss in enumerate(stage.losses if stage else [])
        if isinstance(loss, DistillSpec)
    ]


def _checked(where: str, spec: DistillSpec, recipe: Recipe) -> Teacher:
    model = load_model(spec.teacher, scale=recipe.scale)
    if model.capability.scale != recipe.scale:
        raise RecipeError(
            f"{where}.teacher: {spec.teacher} enlarges by {model.capability.scale}, this recipe by {recipe.scale}: "
            "name a model of the same scale"
        )
    need, have = _bytes_needed(model.module, recipe), _memory(recipe)
    if need > have:
        part = "a batch" if recipe.rows_per_step == 1 else "a worker's part of a batch"
        raise ResourceError(
            f"{where}.teacher: {spec.teacher} needs about {need / 2**30:.1f} GiB for {part} and there are "
            f"{have / 2**30:.1f} GiB: lower data.batch or data.crop, or raise training.accumulate"
        )
    weights = model.module.state_dict() if model.network else None
    return Teacher(spec.teacher, model.network, weights)


def _bytes_needed(module: Generator, recipe: Recipe) -> float:
    """Weights, and the largest tensors of one run on the crops that are computed at once."""
    crops = recipe.data.batch // recipe.rows_per_step
    pixels = crops * (recipe.data.crop // recipe.scale) ** 2
    trial = try_out(module, module.capability.channels)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    return weights + 4 * _TENSORS_AT_ONCE * trial.values_per_pixel * pixels


def _memory(recipe: Recipe) -> int:
    """Bytes of the GPU that this process sees, where one trains, else of the machine."""
    if recipe.training.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _build(teacher: Teacher) -> Generator:
    if teacher.network is None or teacher.weights is None:
        return cast(Generator, load_model(teacher.ref).module)
    return generator_from_state(teacher.network, teacher.weights, teacher.ref)
