"""The generator replicas as their callers see them: Serve's errors become problems, abandoned work stops."""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_sr.images import Photo
from ray_sr.serving.admission import AdmissionQueue
from ray_sr.serving.codec import EncodeSettings
from ray_sr.serving.problems import Problem, problem_of
from ray_sr.serving.schemas import Abandoned, ModelChoice, ModelInfo, Permit, ScaleChanged, ServedModel, Upscaled

DESCRIBE_DEADLINE_S = 2.0
FRESH_S = 2.0  # for so long a model's description is not asked for again


class Router:
    """The replicas of one model, and the queue before them. Remembers the model that the last answer came from."""

    def __init__(self, handle: DeploymentHandle[Any], queue: AdmissionQueue) -> None:
        self.queue = queue
        # More than the replicas take at once wait here: waiting in Serve's router costs half of two cores.
        self._gate = asyncio.Semaphore(queue.at_once)
        self._handle = handle
        self._tag: str | None = None
        self._model: ModelInfo | None = None
        self._asked = 0.0
        self._asking: asyncio.Task[ModelInfo] | None = None

    async def model(self) -> ModelInfo:
        """The model being served. Raises Problem (starting) until a replica has loaded it.

        Where it is known, it is told at once and asked for again meanwhile: it may be another one soon.
        """
        if self._model is None:
            return await self._describe()
        if time.monotonic() - self._asked > FRESH_S and (self._asking is None or self._asking.done()):
            self._asking = in_background(self._describe())
        return self._model

    def forget(self) -> None:
        """The next `model` is asked of a replica."""
        self._model = None

    async def upscale(
        self,
        photo: Photo,
        settings: EncodeSettings,
        on_progress: Callable[[float], None] | None = None,
        permit: Permit | None = None,
    ) -> Upscaled:
        """The photo from a replica; with `on_progress` as a job, tile by tile, for as long as it is permitted.

        Raises Problem: overloaded, starting or internal, and ScaleChanged.
        """
        try:
            with serve_errors():
                result = await self._upscale(photo, settings, on_progress, permit)
        except Problem as problem:
            if problem.kind == "starting":
                self.forget()
            raise
        if settings.denoise is None:
            self._model = result.model
        return result

    async def _upscale(
        self,
        photo: Photo,
        settings: EncodeSettings,
        on_progress: Callable[[float], None] | None,
        permit: Permit | None,
    ) -> Upscaled:
        choice = ModelChoice(self._tag, settings.denoise)
        if on_progress is None:
            async with self._gate:
                response = self._handle.upscale.remote(photo, settings.scale, settings.network_scale, choice)
                return cast(Upscaled, await answer_of(response))
        method = self._handle.options(stream=True).upscale_by_tiles
        steps: Any = method.remote(photo, settings.scale, settings.network_scale, permit, choice)
        try:
            async for step in steps:
                if isinstance(step, Upscaled):
                    return step
                on_progress(step)
        finally:
            steps.cancel()
        raise Problem("starting", "the replica that held the picture is gone; send it again")

    async def _describe(self) -> ModelInfo:
        self._asked = time.monotonic()
        try:
            with serve_errors():
                async with asyncio.timeout(DESCRIBE_DEADLINE_S):
                    self._model = cast(ModelInfo, await answer_of(self._handle.describe.remote()))
        except TimeoutError:
            raise Problem("starting", "the model is being loaded; try again soon") from None
        return self._model


class ChosenRouter(Router):
    """The replicas that hold many models, for one of these."""

    def __init__(self, replicas: Router, model: ModelInfo) -> None:
        self.queue, self._gate = replicas.queue, replicas._gate
        self._handle = replicas._handle.options(multiplexed_model_id=model.tag)  # Serve prefers who has it
        self._tag, self._model = model.tag, model

    async def model(self) -> ModelInfo:
        """The model that was chosen."""
        assert self._model is not None
        return self._model

    def forget(self) -> None:
        """Another model has another router."""


class Catalogue:
    """All models that are served, by their id; the first is the default."""

    def __init__(self, generators: Mapping[str, Router]) -> None:
        self._generators = dict(generators)

    async def models(self) -> list[ServedModel]:
        """What is served. Raises Problem (starting) until every model has a replica."""
        infos = await asyncio.gather(*(generators.model() for generators in self._generators.values()))
        return [
            ServedModel(id=name, **info.model_dump()) for name, info in zip(self._generators, infos, strict=True)
        ]

    async def pick(self, asked: str | None) -> Router:
        """The replicas of the model of this id, name or name@version. Raises Problem (invalid-parameter)."""
        if asked is None:
            return next(iter(self._generators.values()))
        if asked in self._generators:
            return self._generators[asked]
        for model in await self.models():
            if asked in (model.name, model.tag):
                return self._generators[model.id]
        raise not_served(asked, list(self._generators))


def not_served(asked: str, known: Sequence[str]) -> Problem:
    """The problem of a model that is not there."""
    near = difflib.get_close_matches(asked, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    errors = [{"parameter": "model", "detail": f"not served; {hint}"}]
    return Problem("invalid-parameter", f"model: not served; {hint}", errors=errors)


def in_background(work: Any) -> asyncio.Task[Any]:
    """The coroutine as a task of its own, which does not end with the request that began it."""
    task: asyncio.Task[Any] = asyncio.create_task(work, context=contextvars.Context())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def answer_of(response: Any) -> Any:
    """What a DeploymentResponse brings. When this call is cancelled, so is the replica's work."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


@contextmanager
def serve_errors() -> Iterator[None]:
    """Errors of Serve and of the replicas as problems."""
    try:
        yield
    except RayTaskError as error:
        # The text of a RayTaskError is the replica's traceback: only its cause may be told.
        if isinstance(error.cause, ScaleChanged):
            raise ScaleChanged from None
        if isinstance(error.cause, Abandoned):
            raise Problem("starting", "the work was abandoned and is started again") from None
        raise problem_of(error.cause) from None
    except BackPressureError:
        raise Problem("overloaded", "too many pictures are waiting; try again later") from None
    except DeploymentUnavailableError:
        raise Problem("starting", "no generator could be started; the operator's log says why") from None
    except (RayActorError, ReplicaUnavailableError, TaskCancelledError):
        raise Problem("starting", "the replica that held the picture is gone; send it again") from None
