"""The generator replicas as the ingress sees them: Serve's errors become problems, abandoned work stops."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_sr.images import Photo
from ray_sr.serving.messages import ModelInfo, Upscaled
from ray_sr.serving.problems import Problem, problem_of

DESCRIBE_DEADLINE_S = 2.0


class Generators:
    """Calls one of the replicas. Remembers the model that the last answer came from."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._model: ModelInfo | None = None

    async def model(self) -> ModelInfo:
        """The model being served. Raises Problem (starting) until a replica has loaded it."""
        if self._model is None:
            try:
                async with asyncio.timeout(DESCRIBE_DEADLINE_S):
                    self._model = await _answer(self._handle.describe.remote())
            except TimeoutError:
                raise Problem("starting", "the model is being loaded; try again soon") from None
        return self._model

    async def upscale(self, photo: Photo, scale: float) -> Upscaled:
        """The photo from a replica. Raises Problem: overloaded, starting or internal."""
        try:
            result: Upscaled = await _answer(self._handle.upscale.remote(photo, scale))
        except Problem as problem:
            if problem.kind == "starting":
                self._model = None
            raise
        self._model = result.model
        return result


async def _answer(response: Any) -> Any:
    """What a DeploymentResponse brings. When this call is cancelled, so is the replica's work."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except RayTaskError as error:
        # The text of a RayTaskError is the replica's traceback: only its cause may be told.
        raise problem_of(error.cause) from None
    except BackPressureError:
        raise Problem("overloaded", "too many pictures are waiting; try again later") from None
    except DeploymentUnavailableError:
        raise Problem("starting", "no generator could be started; the operator's log says why") from None
    except (RayActorError, ReplicaUnavailableError, TaskCancelledError):
        raise Problem("starting", "the replica that held the picture is gone; send it again") from None
