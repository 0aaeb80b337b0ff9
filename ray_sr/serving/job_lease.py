"""Which process owns the jobs in a storage: one at a time, although several may want to.

Two can meet where a process was thought to be dead, or where an update starts the new service beside the old.
The latest claim wins: it is written into the storage, and its holder begins only after a pause in which the
former holder, who looks several times within it, has seen the claim and stopped. Where the former one released
its claim there is no pause. No clocks are compared: each process measures on its own how long ago it looked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ray_sr.errors import ResourceError
from ray_sr.serving.job_storage import JobStorage

logger = logging.getLogger(__name__)

_LOOKS = 4  # within the time of a lease
_LAPSES = 0.7  # share of that time after which, without a look, it counts as lost


@dataclass(frozen=True, order=True)
class Claim:
    """Who claims the jobs: the greater claim is the later one."""

    number: int
    holder: str


class JobLease:
    """The right to own the jobs in a storage, held by one process at a time.

    `gained` is awaited when it is held from then on, `lost` is called when it is not any more.
    """

    def __init__(
        self, storage: JobStorage, lease_s: float, gained: Callable[[], Awaitable[None]], lost: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._lease_s = lease_s
        self._gained = gained
        self._lost = lost
        self._mine: Claim | None = None
        self._is_held = False
        self._looked = 0.0

    @property
    def is_held(self) -> bool:
        """Whether this process may work now: it holds the claim and has looked lately."""
        return self._is_held and time.monotonic() - self._looked < _LAPSES * self._lease_s

    async def keep(self) -> None:
        """Claims and holds until it is cancelled; where another one claims, waits until that one is gone."""
        while True:
            try:
                if await self._claim():
                    self._is_held = True
                    await self._gained()
                    await self._hold()
            except ResourceError as error:
                logger.warning("the jobs wait for their storage: %s", error)
            if self._is_held:
                self._is_held = False
                self._lost()
            await self._wait_for_release()

    def release(self) -> None:
        """Gives the claim back, so that the next process need not wait. Blocks."""
        was_held, self._is_held = self._is_held, False
        if was_held and _claim_in(self._storage.read_owner()) == self._mine:
            self._storage.delete_owner()

    async def _claim(self) -> bool:
        """Whether the claim stands after the pause."""
        former = _claim_in(await asyncio.to_thread(self._storage.read_owner))
        self._mine = Claim(former.number + 1 if former else 1, secrets.token_hex(8))
        await self._write()
        if former is None:
            return await self._stands()
        for _ in range(_LOOKS):
            await asyncio.sleep(self._lease_s / _LOOKS)
            if not await self._stands():
                return False
        return True

    async def _hold(self) -> None:
        """Returns when another claim is later than this one. Storage may fail for less than a lease."""
        while True:
            try:
                if not await self._stands():
                    return
                await self._write()
            except ResourceError:
                if not self.is_held:
                    raise
            await asyncio.sleep(self._lease_s / _LOOKS)

    async def _stands(self) -> bool:
        """Looks; writes the claim again where an earlier one, or nothing, has overwritten it."""
        assert self._mine is not None
        found = _claim_in(await asyncio.to_thread(self._storage.read_owner))
        if found is not None and found > self._mine:
            return False
        if found != self._mine:
            await self._write()
        self._looked = time.monotonic()
        return True

    async def _write(self) -> None:
        """Writes the claim with a beat that tells it from the one before."""
        assert self._mine is not None
        text = json.dumps({"number": self._mine.number, "holder": self._mine.holder, "beat": secrets.token_hex(4)})
        await asyncio.to_thread(self._storage.write_owner, text.encode())

    async def _wait_for_release(self) -> None:
        """Returns when nobody holds the jobs any more: the claim is gone, or has had no new beat for two leases."""
        last: bytes | None = b""
        since = time.monotonic()
        while time.monotonic() - since < 2 * self._lease_s:
            await asyncio.sleep(self._lease_s / _LOOKS)
            try:
                found = await asyncio.to_thread(self._storage.read_owner)
            except ResourceError:
                continue
            if _claim_in(found) in (None, self._mine):
                return
            if found != last:
                last, since = found, time.monotonic()


def _claim_in(text: bytes | None) -> Claim | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Claim(int(found["number"]), str(found["holder"]))
    except (ValueError, KeyError, TypeError):
        return None
