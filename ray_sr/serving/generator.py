"""The generator replica: holds one model on one device and upscales decoded photos, one after the other."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from ray_sr.images import Photo
from ray_sr.model_store import Store, load_model
from ray_sr.serving.messages import ModelInfo, Upscaled
from ray_sr.serving.options import ServiceOptions
from ray_sr.upscaling import Engine, upscale_photo


class Abandoned(Exception):
    """Raised inside the engine's thread once nobody waits for the result any more."""


def _device(options: ServiceOptions) -> str:
    """A replica without a reserved GPU leaves the GPUs to others, even where it can see them."""
    return "cpu" if options.device == "auto" and not options.gpus else options.device


class Generator:
    """What runs in a replica. Knows nothing of HTTP; Serve calls its methods on the replica's event loop."""

    def __init__(self, options: ServiceOptions) -> None:
        """Loads the model by reference. Raises ModelError where it cannot be loaded."""
        torch.set_num_threads(max(1, int(options.cpus or 1)))
        store = Store(options.store) if options.store else None
        model = load_model(options.model, store)
        self._info = ModelInfo(name=model.name, version=model.version, scale=model.capability.scale)
        self._engine = Engine(
            model.module,
            model.capability,
            device=_device(options),
            precision=options.precision,
            tile=options.tile,
        )
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._device_fault: Exception | None = None

    async def describe(self) -> ModelInfo:
        """The model that this replica holds."""
        return self._info

    async def upscale(self, photo: Photo, scale: float) -> Upscaled:
        """The photo enlarged by `scale`. Cancelling the call stops the work after the tile under way."""
        abandoned = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._device, self._run, photo, scale, abandoned
            )
        except asyncio.CancelledError:
            abandoned.set()
            raise

    def check_health(self) -> None:
        """Serve replaces the replica when this raises: a CUDA fault stays until the process ends."""
        if self._device_fault is not None:
            raise RuntimeError("the device failed") from self._device_fault

    def _run(self, photo: Photo, scale: float, abandoned: threading.Event) -> Upscaled:
        def stop_when_abandoned(_: float) -> None:
            if abandoned.is_set():
                raise Abandoned

        begin = time.perf_counter()
        try:
            result = upscale_photo(photo, self._engine, scale=scale, progress=stop_when_abandoned)
        except torch.AcceleratorError as error:
            self._device_fault = error
            raise
        return Upscaled(result, self._info, time.perf_counter() - begin)
