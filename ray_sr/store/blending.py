"""Deep network interpolation (Wang et al., CVPR 2019, arXiv 1811.10515): models between two models."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import torch

from ray_sr.errors import ModelError
from ray_sr.models.weights import generator_from_state
from ray_sr.recipes.networks import NetworkSpec
from ray_sr.recipes.purpose import Purpose
from ray_sr.store.store import Model, ModelRecord, Store

# What `denoise` blends in: the first of the model's network.
CLEANING_MODELS = ("real-x4-smooth", "light-jpeg-x4")


def blended(model: Model, other: Model, share: float) -> Model:
    """The model whose every weight lies `share` (0 to 1) of the way from that of `model` to that of `other`.

    That works where one was trained from the other's weights. Raises ModelError for models of different networks.
    """
    ours, theirs = model.network, other.network
    if ours is None or ours != theirs:
        raise ModelError(
            f"only two models of one network can be blended: {model.name} is {_named(ours)}, "
            f"{other.name} is {_named(theirs)}"
        )
    others = other.module.state_dict()
    state = {name: torch.lerp(value, others[name], share) for name, value in model.module.state_dict().items()}
    name = f"{model.name}+{share:g}*{other.name}"
    module = generator_from_state(ours, state, name)
    return Model(name, f"{model.version}-{other.version}", ours, module, module.capability, model.card)


def _named(network: NetworkSpec | None) -> str:
    if network is None:
        return "a foreign network"
    fields = network.generator.model_dump(exclude={"kind"}, exclude_none=True)
    options = ", ".join(f"{key} {value}" for key, value in fields.items())
    return f"{network.generator.kind} x{network.scale} ({options})"


def cleaning_partner(network: NetworkSpec | None, purpose: Purpose, store: Store) -> str | None:
    """NAME@VERSION of the cleaning model that a model of this network and purpose is blended with; else None."""
    found = []
    for name in CLEANING_MODELS:
        with suppress(ModelError):
            found.append(store.show(name))
    partner = fitting(found, network, purpose)
    return None if partner is None else partner.ref


def fitting(cleaning: Iterable[ModelRecord], network: NetworkSpec | None, purpose: Purpose) -> ModelRecord | None:
    """The first of the cleaning models of this network; None for a model that was made for damaged photos."""
    if purpose == "unknown":
        return None
    return next((record for record in cleaning if record.network == network), None)
