"""Leave to work on a job, which a generator replica asks of the owner of the jobs again and again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from ray_sr.serving.job_lease import LAPSES
from ray_sr.serving.schemas import Abandoned, Permit

Ask = Callable[[str, str], Awaitable[bool]]

_MOST_PAUSE_S = 1.0


class Permission:
    """Leave for the work that `permit` names, as `ask` (job, run) tells it.

    An answer holds for half a lease from when it was asked for, not from when it came: by then the former owner may
    have lapsed. The next owner begins a whole lease after its claim, when the last leave of this one has ended.
    """

    def __init__(self, permit: Permit, ask: Ask) -> None:
        self._permit = permit
        self._ask = ask
        self._good_for = (1 - LAPSES) * permit.lease_s
        self._pause = min(_MOST_PAUSE_S, permit.lease_s / 10)
        self._until = 0.0

    async def begin(self) -> None:
        """Returns with the first leave. Raises Abandoned where it is refused, or nobody gives it."""
        self._until = time.monotonic() + self._good_for
        if not await self._renew():
            raise Abandoned

    async def watch(self, abandoned: threading.Event) -> None:
        """Sets `abandoned` as soon as there is no leave any more; returns when it is set."""
        try:
            while not abandoned.is_set():
                await asyncio.sleep(min(self._pause, max(0.0, self._until - time.monotonic())))
                if not await self._renew():
                    return
        finally:  # whatever went wrong: work that nobody watches must not go on
            abandoned.set()

    async def _renew(self) -> bool:
        """Whether there is leave from now on. While the owner is being replaced, asks until the last one ends."""
        while (begin := time.monotonic()) < self._until:
            try:
                async with asyncio.timeout(self._until - begin):
                    allowed = await self._ask(self._permit.job, self._permit.run)
            except (TimeoutError, RayError, RayServeException):
                await asyncio.sleep(min(self._pause, max(0.0, self._until - time.monotonic())))
                continue
            self._until = begin + self._good_for
            return allowed and time.monotonic() < self._until
        return False
