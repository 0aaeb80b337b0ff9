"""Weights of a published model that a run starts from: all of them, or what fits another scale."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_sr.errors import ModelError
from ray_sr.models import build_discriminator, build_generator
from ray_sr.models.weights import is_weights_file, load_strict, read_state
from ray_sr.recipes.networks import NetworkSpec, SpandrelSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import load_model
from ray_sr.training.state import STATE_FILE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """`weights` of the model `ref` (NAME@VERSION); the generator's own of the names in `new` stay as drawn.

    `skipped` are the names of the model's weights that the generator has no place for.
    """

    ref: str
    weights: dict[str, Tensor]
    new: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        return f"{self.ref}, but for {', '.join(self.new)}" if self.new else self.ref


def initial_weights(ref: str, recipe: Recipe) -> InitialWeights:
    """What the model gives to the recipe's generator: all, or what fits where only the scale is another.

    A network for x2 is a good start for x4 and saves most of its training (EDSR, arXiv 1707.02921, section
    3.2); the other way round as well. So is a deeper network with some of its residual blocks left out: the
    others need little training to do without them. Raises ModelError where it is another network, and the
    errors of `load_model`.
    """
    model = load_model(ref)
    theirs, ours = model.network, recipe.network
    if theirs is None or not _alike(theirs, ours):
        named = f"{theirs.generator.kind} x{theirs.scale}" if theirs else "a foreign network"
        raise ModelError(
            f"init {ref}: {named} is not the recipe's generator, {recipe.generator.kind} x{recipe.scale} "
            "with the same options"
        )
    blocks = _taken_blocks(ref, theirs, recipe)
    given = model.module.state_dict()
    if _depth(theirs) > _depth(ours):
        given = _renumbered(given, blocks)
    with torch.device("meta"):
        own = build_generator(ours).state_dict()
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    if not fitting:
        raise ModelError(
            f"init {ref}: none of its weights fits the recipe's generator: their options differ too much"
        )
    skipped = [name for name in given if name not in fitting]
    if skipped:
        _log.warning("init %s: %d weights do not fit and are left out: %s", ref, len(skipped), _named(skipped))
    new = [name for name in own if name not in fitting]
    if new:
        _log.warning("init %s: %d weights are not in it and start anew: %s", ref, len(new), _named(new))
    return InitialWeights(f"{model.name}@{model.version}", fitting, new, skipped)


def network_of(ref: str) -> list[str]:
    """Overrides of a recipe that start from the model `ref` and keep its network. Raises as `load_model` does."""
    network = load_model(ref).network
    if network is None:
        raise ModelError(f"init {ref}: its network cannot be trained, only run: its options do not follow from it")
    generator = json.dumps(network.generator.model_dump(mode="json"))
    kept = {"scale": network.scale, "value_range": network.value_range, "generator": generator}
    return [f"init={json.dumps(ref)}", *(f"{key}={value}" for key, value in kept.items())]


def initial_discriminator(recipe: Recipe) -> dict[str, Tensor] | None:
    """The weights of the recipe's `init_discriminator`, which fit its discriminator; None without one.

    A file of weights, or a checkpoint's folder (or its state.pt) of ray-sr. Raises InputError for a missing
    file, ModelError for one that does not fit.
    """
    if recipe.init_discriminator is None or recipe.discriminator is None:
        return None
    place = recipe.init_discriminator
    path = place if is_weights_file(place) else f"{place.rstrip('/')}/{STATE_FILE}"
    state = read_state(path, part="discriminator")
    with torch.random.fork_rng(devices=[]):
        own = build_discriminator(recipe.discriminator, recipe.data.crop, recipe.value_range)
    load_strict(own, state, f"init_discriminator {place}")
    return state


def _named(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


_STACKS = ("srresnet", "msrresnet", "rrdbnet", "upresnet", "span", "rlfn")  # their blocks are all alike
_BLOCK = re.compile(r"^(body\.|blocks\.|block_)(\d+)\.")


def _depth(network: NetworkSpec) -> int:
    return getattr(network.generator, "blocks", 0)


def _alike(theirs: NetworkSpec, ours: NetworkSpec) -> bool:
    """Whether they are one network but for the scale and, where theirs has more, the number of blocks."""
    update: dict[str, Any] = {"scale": ours.scale}
    mine, other = ours.generator, theirs.generator
    if isinstance(mine, SpandrelSpec) and isinstance(other, SpandrelSpec):
        if mine.architecture != other.architecture:
            return False
        update["generator"] = mine  # with other options: what fits is taken, and what does not is named
    if theirs.generator.kind in _STACKS and _depth(theirs) > _depth(ours):
        update["generator"] = theirs.generator.model_copy(update={"blocks": _depth(ours)})
    return theirs.model_copy(update=update) == ours


def _taken_blocks(ref: str, theirs: NetworkSpec, recipe: Recipe) -> list[int]:
    """Numbers (from 0) of the blocks that are taken from their network, one for each of ours."""
    have, want = _depth(theirs), _depth(recipe.network)
    chosen = recipe.init_blocks
    if chosen is None:
        return [round(number * (have - 1) / max(want - 1, 1)) for number in range(want)]
    if len(chosen) != want or chosen != sorted(set(chosen)) or not all(0 <= number < have for number in chosen):
        raise ModelError(
            f"init_blocks {chosen}: name {want} blocks of init {ref} in rising order, each from 0 to {have - 1}"
        )
    return chosen


def _renumbered(state: dict[str, Tensor], blocks: list[int]) -> dict[str, Tensor]:
    """The state with the chosen blocks alone, numbered anew; SPAN and RLFN count theirs from 1."""
    renumbered = {}
    for name, tensor in state.items():
        found = _BLOCK.match(name)
        if found is None:
            renumbered[name] = tensor
            continue
        first = 1 if found[1] == "block_" else 0
        old = int(found[2]) - first
        if old in blocks:
            renumbered[f"{found[1]}{blocks.index(old) + first}.{name[found.end() :]}"] = tensor
    return renumbered
