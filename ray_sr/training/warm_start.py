"""Weights of a published model that a run starts from: all of them, or what fits another scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_sr.errors import ModelError
from ray_sr.models import build_generator
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import load_model


@dataclass(frozen=True)
class InitialWeights:
    """`weights` of the model `ref` (NAME@VERSION); the generator's own of the names in `new` stay as drawn."""

    ref: str
    weights: dict[str, Tensor]
    new: list[str]

    def __str__(self) -> str:
        return f"{self.ref}, but for {', '.join(self.new)}" if self.new else self.ref


def initial_weights(ref: str, recipe: Recipe) -> InitialWeights:
    """What the model gives to the recipe's generator: all, or what fits where only the scale is another.

    A network for x2 is a good start for x4 and saves most of its training (EDSR, arXiv 1707.02921, section
    3.2); the other way round as well. Raises ModelError where it is another network, and the errors of
    `load_model`.
    """
    model = load_model(ref)
    theirs, ours = model.network, recipe.network
    if theirs is None or theirs.model_copy(update={"scale": ours.scale}) != ours:
        named = f"{theirs.generator.kind} x{theirs.scale}" if theirs else "a foreign network"
        raise ModelError(
            f"init {ref}: {named} is not the recipe's generator, {recipe.generator.kind} x{recipe.scale} "
            "with the same options"
        )
    given = model.module.state_dict()
    with torch.device("meta"):
        own = build_generator(ours).state_dict()
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    return InitialWeights(f"{model.name}@{model.version}", fitting, [name for name in own if name not in fitting])
