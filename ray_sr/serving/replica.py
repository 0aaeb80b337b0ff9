"""The generator replica: holds one model on one device and upscales decoded photos.

The photos of requests are upscaled in their order. A job, which may take minutes, lets them go first after each
of its tiles. On a GPU, tiles of one size of several photos run at once: see `batches`. Where the model is a
channel, or the newest of its name, the replica looks at the store now and then and takes over what that means
by now, between two photos.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from ray import serve
from ray.serve.metrics import Gauge, Histogram

from ray_sr.errors import ModelError, RaySRError
from ray_sr.images import Photo
from ray_sr.models.weights import is_weights_file
from ray_sr.recipes.purpose import BUILT_IN_TOLD, Told, told_by
from ray_sr.serving.model_cache import ModelCache, weight_bytes
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.permits import Permission
from ray_sr.serving.problems import Problem
from ray_sr.serving.schemas import JOB_OWNER, Abandoned, ModelChoice, ModelInfo, Permit, ScaleChanged, Upscaled
from ray_sr.serving.tile_batching import Batches
from ray_sr.store import BUILT_IN, Model, Store, load_model
from ray_sr.store.blending import blended, cleaning_partner
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.accelerator import limit_memory, set_float32_products

logger = logging.getLogger(__name__)

_DEFAULT = ModelChoice()
_KNOWN_MODELS = 64
_GPU_TILES = 16  # at once; more than one on a CPU gains nothing but for thumbnails


@dataclass(frozen=True)
class _Held:
    """A model on the device."""

    info: ModelInfo
    engine: Engine
    bytes: int  # of its weights


def _card_told(model: Model) -> Told:
    return BUILT_IN_TOLD if model.name == BUILT_IN else told_by(model.card.get("recipe"), model.capability.scale)


def _device(options: ServiceOptions) -> str:
    """A replica without a reserved GPU leaves the GPUs to others, even where it can see them."""
    return "cpu" if options.device == "auto" and not options.gpus else options.device


class GeneratorReplica:
    """What runs in a replica. Knows nothing of HTTP; Serve calls its methods on the replica's event loop."""

    def __init__(self, options: ServiceOptions, model: str | None = None) -> None:
        """Loads the model by reference, by default that of the options. Raises ModelError."""
        self._ended = threading.Event()
        torch.set_num_threads(options.threads or 1)
        self._options = options
        self._ref = model or options.model
        self._store = Store(options.store) if options.store else Store()
        if options.gpus and torch.cuda.is_available():
            limit_memory(options.gpus, torch.device("cuda"))
        self._held = self._load(load_model(self._ref, self._store))
        device = self._held.engine.device
        sizes = Histogram("sr_batch_tiles", "Tiles that ran at once", [1, 2, 4, 8, 16, 32])
        most = options.batch_tiles or (1 if device.type == "cpu" else _GPU_TILES)
        self._cache = ModelCache(options.models_bytes, self._load_choice)
        self._batches = Batches(most, note=sizes.observe)
        self._threads = ThreadPoolExecutor(options.requests_per_replica + 1, thread_name_prefix="engine")
        self._device_fault: Exception | None = None
        self._memory = _memory_gauge(device)
        if device.type == "cuda":
            set_float32_products("ieee")  # the engine's own guard is for one thread
        if self._follows:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def __del__(self) -> None:
        self._ended.set()

    async def describe(self) -> ModelInfo:
        """The model that this replica holds."""
        return self._held.info

    async def _held_by(self, choice: ModelChoice) -> tuple[_Held, float]:
        """The model that was chosen, and the seconds that were waited for it."""
        if choice.denoise is None:
            return self._held, 0.0
        return await self._cache.get(ModelChoice(self._held.info.tag, choice.denoise))

    def _load_choice(self, choice: ModelChoice) -> tuple[_Held, int]:
        """The model with its bytes. Raises Problem where the store does not have it any more."""
        try:
            model = self._by_tag(str(choice.tag))
            if choice.denoise is not None:
                partner = cleaning_partner(model.network, _card_told(model)["purpose"], self._store)
                if partner is None:
                    raise Problem("invalid-parameter", f"denoise: no cleaning model fits {model.name}")
                model = blended(model, self._store.load(partner), choice.denoise)
        except ModelError as error:
            logger.warning("%s", error)
            raise Problem("invalid-parameter", f"model: {choice.tag} cannot be loaded any more") from None
        loaded = self._load(model)
        return loaded, loaded.bytes

    def _by_tag(self, tag: str) -> Model:
        if tag.startswith(f"{BUILT_IN}@"):
            return load_model(BUILT_IN)
        return load_model(self._ref, self._store) if self._is_file else self._store.load(tag)

    async def upscale(
        self, photo: Photo, scale: float, network_scale: int, choice: ModelChoice = _DEFAULT
    ) -> Upscaled:
        """The photo enlarged by `scale`. Cancelling the call stops the work after the tile under way.

        Raises ScaleChanged where the network enlarges other than `network_scale` times by now.
        """
        held, load_s = await self._held_by(choice)
        abandoned = threading.Event()
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._run, held, photo, scale, network_scale, abandoned
            )
            return replace(result, load_s=load_s)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def upscale_by_tiles(
        self,
        photo: Photo,
        scale: float,
        network_scale: int,
        permit: Permit | None = None,
        choice: ModelChoice = _DEFAULT,
    ) -> AsyncIterator[float | Upscaled]:
        """The share that is done after each tile, then the result. Photos of `upscale` go before each tile.

        With a permit, the work begins when the owner of the jobs grants it, and stops when that does not do so any
        more or is gone for long. Raises Abandoned.
        """
        permission = Permission(permit, _ask_owner) if permit else None
        if permission:
            await permission.begin()
        held, load_s = await self._held_by(choice)
        loop = asyncio.get_running_loop()
        shares: asyncio.Queue[float | None] = asyncio.Queue()
        abandoned = threading.Event()

        def after_tile(share: float) -> None:
            loop.call_soon_threadsafe(shares.put_nowait, share)

        work = loop.run_in_executor(
            self._threads, self._run, held, photo, scale, network_scale, abandoned, after_tile
        )

        def after_work(done: asyncio.Future[Upscaled]) -> None:
            _ = done.cancelled() or done.exception()  # seen, even where nobody waits for it any more
            shares.put_nowait(None)

        work.add_done_callback(after_work)
        watching = asyncio.create_task(permission.watch(abandoned)) if permission else None
        try:
            while (share := await shares.get()) is not None:
                yield share
            yield replace(await work, load_s=load_s)
        finally:
            abandoned.set()
            if watching:
                watching.cancel()

    def check_health(self) -> None:
        """Serve replaces the replica when this raises: a CUDA fault stays until the process ends."""
        if self._device_fault is not None:
            raise RuntimeError("the device failed") from self._device_fault

    def _run(
        self,
        held: _Held,
        photo: Photo,
        scale: float,
        network_scale: int,
        abandoned: threading.Event,
        after_tile: Callable[[float], None] | None = None,
    ) -> Upscaled:
        """The work of a request; of a job where it is told of its tiles."""
        if held.engine.scale != network_scale:
            raise ScaleChanged

        def progress(share: float) -> None:
            if abandoned.is_set():
                raise Abandoned
            if after_tile:
                after_tile(share)

        # What fits as one tile fits as several small ones.
        with self._batches.turn(abandoned, held.engine.tile**2, job=after_tile is not None) as turn:
            progress(0.0)
            engine = held.engine.through(turn.run)
            try:
                result = upscale_photo(photo, engine, scale=scale, progress=progress)
            except torch.AcceleratorError as error:
                self._device_fault = error
                raise
            held.engine.tile = min(held.engine.tile, engine.tile)  # where memory did not suffice
            self._memory()
            seconds = time.perf_counter() - turn.begun if turn.begun else 0.0
            return Upscaled(result, held.info, seconds)

    # ---------------------------------------------------------------------------- following the store

    def _load(self, model: Model) -> _Held:
        options, scale, told = self._options, model.capability.scale, _card_told(model)
        info = ModelInfo(
            name=model.name,
            version=model.version,
            scale=scale,
            **told,
            denoise=cleaning_partner(model.network, told["purpose"], self._store) is not None,
        )
        engine = Engine(
            model.module,
            model.capability,
            device=_device(options),
            precision=options.precision,
            tile=options.tile,
        )
        return _Held(info, engine, weight_bytes(model.module))

    @property
    def _follows(self) -> bool:
        """Whether the reference can mean another model later: it is neither a file, built in, nor a version."""
        return not self._is_file and "@" not in self._ref and self._ref != BUILT_IN

    @property
    def _is_file(self) -> bool:
        return "/" in self._ref or ":" in self._ref or is_weights_file(self._ref)

    def _follow(self) -> None:
        while not self._ended.wait(self._options.follow_s):
            try:
                self._take_over()
            except Exception as error:  # of whatever kind: a thread that ended would leave the old model for ever
                torch.cuda.empty_cache()
                logger.warning("%s stays in service, to be tried again: %s", self._held.info.tag, _told(error))

    def _take_over(self) -> None:
        """Loads what the reference means now, beside the present model, and then lets it take its place."""
        if self._store.show(self._ref).ref == self._held.info.tag:
            return
        loaded = self._load(self._store.load(self._ref))
        former, self._held = self._held, loaded
        logger.warning("%s: %s takes the place of %s", self._ref, loaded.info.tag, former.info.tag)


class AllModelsReplica(GeneratorReplica):
    """A replica that upscales with any model of the store: loaded when first asked for, and kept by use."""

    def __init__(self, options: ServiceOptions, model: str | None = None) -> None:
        """Loads the default model. Raises ModelError."""
        super().__init__(options, model)
        self._cache.put(ModelChoice(self._held.info.tag), self._held, self._held.bytes)

    @property
    def _follows(self) -> bool:
        return False  # callers name the version that they mean

    @serve.multiplexed(max_num_models_per_replica=_KNOWN_MODELS)
    async def _have(self, tag: str) -> str:
        """Tells Serve who has which model. What is in memory is bounded by its bytes, in the cache."""
        return tag

    async def _held_by(self, choice: ModelChoice) -> tuple[_Held, float]:
        tag = choice.tag or self._held.info.tag
        await self._have(tag)
        return await self._cache.get(ModelChoice(tag, choice.denoise))


def _told(error: Exception) -> str:
    """An error of ours as it is, any other one in one line with its kind."""
    line = next(iter(str(error).splitlines()), "")
    return str(error) if isinstance(error, RaySRError) else f"{type(error).__name__}: {line}"


async def _ask_owner(job: str, run: str) -> bool:
    owner = serve.get_deployment_handle(JOB_OWNER, serve.get_replica_context().app_name)
    return bool(await owner.permits.remote(job, run))


def _memory_gauge(device: torch.device) -> Callable[[], None]:
    """Notes the memory that a replica holds on its GPU each time it is called; nothing on a CPU."""
    if device.type != "cuda":
        return lambda: None
    gauge = Gauge("sr_gpu_memory_bytes", "Memory that the replica holds on its GPU")
    return lambda: gauge.set(torch.cuda.memory_reserved(device))
