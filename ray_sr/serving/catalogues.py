"""Which models a service offers: those that were named, or every model at hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from ray_sr.errors import ModelError, ResourceError
from ray_sr.models import Bicubic
from ray_sr.recipes.purpose import BUILT_IN_TOLD, told_by
from ray_sr.serving.admission import AdmissionQueue
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.problems import Problem
from ray_sr.serving.router import Catalogue, ChosenRouter, Router, not_served
from ray_sr.serving.schemas import ModelInfo, ServedModel
from ray_sr.store import BUILT_IN, ModelRecord, Store
from ray_sr.store.blending import CLEANING_MODELS, fitting
from ray_sr.store.store import SHIPPED

_BICUBIC_SCALE = 4
_ROUTERS = 256


def catalogue_of(options: ServiceOptions, generators: Sequence[DeploymentHandle[Any]]) -> Catalogue:
    """The models of the options, whose deployments come in the same order; or all that are at hand."""
    most = options.max_replicas * options.requests_per_replica
    routers = {
        name: Router(handle, AdmissionQueue(options.limits.queue_s, most))
        for name, handle in zip(options.model_ids, generators, strict=True)
    }
    return AllModels(routers, options) if options.all_models else Catalogue(routers)


def info_of(record: ModelRecord, cleaning: Sequence[ModelRecord]) -> ModelInfo:
    """What the service tells of a published model; `cleaning` are those that `denoise` blends in."""
    told = told_by(record.recipe, record.network.scale)
    return ModelInfo(
        name=record.name,
        version=record.version,
        scale=record.network.scale,
        **told,
        denoise=fitting(cleaning, record.network, told["purpose"]) is not None,
    )


class AllModels(Catalogue):
    """Every model of the store and those that come with ray-sr, in the replicas of one deployment.

    The store is looked at again every `follow_s` seconds, when somebody asks.
    """

    def __init__(self, generators: dict[str, Router], options: ServiceOptions) -> None:
        super().__init__(generators)
        (self._default, self._replicas), *_ = generators.items()
        self._follow_s = options.follow_s
        self._store = Store(options.store)
        self._found: dict[str, ServedModel] = {}
        self._all: dict[str, ModelInfo] = {}
        self._looked = -options.follow_s
        self._routers: dict[str, ChosenRouter] = {}
        self._looking = asyncio.Lock()

    async def models(self) -> list[ServedModel]:
        """The default, then what channels mean, then all other names. Raises Problem (starting)."""
        await self._replicas.model()  # a replica is there
        await self._look()
        return list(self._found.values())

    async def pick(self, asked: str | None) -> Router:
        """The replicas, for the model of this channel, name or name@version. Raises Problem (invalid-parameter)."""
        await self._look()
        model = self._found.get(self._default if asked is None else asked) or self._all.get(asked or "")
        if model is None:
            raise not_served(str(asked), list(self._found))
        if len(self._routers) > _ROUTERS:  # of versions that came and went
            self._routers.clear()
        if model.tag not in self._routers:
            self._routers[model.tag] = ChosenRouter(self._replicas, model)
        return self._routers[model.tag]

    async def _look(self) -> None:
        async with self._looking:
            if time.monotonic() - self._looked < self._follow_s:
                return
            try:
                self._found, self._all = await asyncio.to_thread(_at_hand, self._default, self._store)
            except (ResourceError, ModelError):
                if not self._found:
                    raise Problem("starting", "the model store does not answer; try again soon") from None
            self._looked = time.monotonic()


def _at_hand(default: str, store: Store) -> tuple[dict[str, ServedModel], dict[str, ModelInfo]]:
    """What is offered by its id, the default first; and every version by its tag, the newest by its name."""
    shipped = Store(SHIPPED)
    records = [*store.list(), *shipped.list()]
    channels = {**shipped.channels(), **store.channels()}
    newest = {record.name: record for record in reversed(records)}
    cleaning = [newest[name] for name in CLEANING_MODELS if name in newest]
    known = {record.ref: info_of(record, cleaning) for record in reversed(records)}
    bicubic = ModelInfo(
        name=BUILT_IN,
        version="built-in",
        scale=Bicubic(_BICUBIC_SCALE).capability.scale,
        **BUILT_IN_TOLD,
    )
    every = {**known, **{info.name: info for info in known.values()}, BUILT_IN: bicubic, bicubic.tag: bicubic}
    named = {name: known[event.current.ref] for name, event in channels.items() if event.current.ref in known}
    first = named.get(default) or every.get(default)
    if first is None:
        raise ModelError(f"no model {default!r} in the store {store.root} any more")
    offered = {default: first, **named}
    meant = {info.tag for info in offered.values()}
    offered |= {info.name: info for info in every.values() if info.tag not in meant and "@" not in info.name}
    return {id: ServedModel(id=id, **info.model_dump()) for id, info in offered.items()}, every
