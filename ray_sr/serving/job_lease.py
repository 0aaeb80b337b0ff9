"""Which process owns the jobs in a storage: one at a time, although several may want to.

Two can meet where a process was thought to be dead, or where an update starts the new service beside the old.
The latest claim wins: it is written into the storage, and its holder begins only after a whole lease in which it
found nothing but its own claim. The former holder looks several times within that. What it does rests on when its
last look *began*: after half a lease it has lapsed, however late the machine comes back to it, and it has lost as
soon as it finds anything but its own claim. The other half is for the work that it permitted: see `permits`. No
clocks are compared.

A folder has locks, under which a look and a write are one step. There claims follow one another, and one that finds
no claim at all need not wait. Buckets have no locks: two can find nothing and write one after the other, so there
every claim waits.
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

_LOOKS = 6  # within the time of a lease
LAPSES = 0.5  # share of that time after which, without a look, nothing may be done any more


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
        return self._is_held and not self._has_lapsed

    @property
    def _has_lapsed(self) -> bool:
        return time.monotonic() - self._looked >= LAPSES * self._lease_s

    async def keep(self) -> None:
        """Claims and holds until it is cancelled; where another one claims, waits until that one is gone."""
        while True:
            try:
                if await self._claim():
                    await self._hold_while_opening()
            except ResourceError as error:
                logger.warning("the jobs wait for their storage: %s", error)
            if self._is_held:
                self._is_held = False
                self._lost()
            await self._wait_for_release()

    def release(self) -> None:
        """Gives the claim back, so that the next process need not wait: nothing it permitted may still go on."""
        was_held, self._is_held = self._is_held, False
        if not was_held:
            return
        with self._storage.owner_lock():
            if _claim_in(self._storage.read_owner()) == self._mine:
                self._storage.delete_owner()

    # ---------------------------------------------------------------------------- claiming

    async def _claim(self) -> bool:
        """Whether the claim stands."""
        self._looked = time.monotonic()
        is_sole = await asyncio.to_thread(self._write_claim)
        if is_sole:
            return True
        since = time.monotonic()
        while True:
            await asyncio.sleep(self._lease_s / _LOOKS)
            begin = time.monotonic()
            found = await asyncio.to_thread(self._look, restore=True)
            assert self._mine is not None
            if found is not None and found > self._mine:
                return False
            if found != self._mine:  # overwritten, and written again: others have to be given the time to see it
                since = time.monotonic()
            elif begin - since >= self._lease_s:
                self._looked = begin
                return True

    def _write_claim(self) -> bool:
        """Writes a claim that is later than the one there; whether there was none, nor can have been since."""
        with self._storage.owner_lock() as is_alone:
            text = self._storage.read_owner()
            former = _claim_in(text)
            self._mine = Claim(former.number + 1 if former else 1, secrets.token_hex(8))
            self._write()
        return is_alone and text is None

    def _look(self, *, restore: bool) -> Claim | None:
        """The claim that is there. One's own gets a new beat; `restore`: an earlier one or none is overwritten."""
        assert self._mine is not None
        with self._storage.owner_lock():
            found = _claim_in(self._storage.read_owner())
            is_overwritten = found is None or found < self._mine
            if (restore and is_overwritten) or (not restore and found == self._mine):
                self._write()
        return found

    def _write(self) -> None:
        """Writes the claim with a beat that tells it from the one before."""
        assert self._mine is not None
        text = json.dumps({"number": self._mine.number, "holder": self._mine.holder, "beat": secrets.token_hex(4)})
        self._storage.write_owner(text.encode())

    # ---------------------------------------------------------------------------- holding

    async def _hold_while_opening(self) -> None:
        """Holds the claim, while `gained` takes over what is there, and after that."""
        opening = asyncio.ensure_future(self._open())
        try:
            await self._hold(opening)
        finally:
            opening.cancel()
            await asyncio.wait([opening])

    async def _open(self) -> None:
        self._is_held = True
        await self._gained()

    async def _hold(self, opening: asyncio.Future[None]) -> None:
        """Returns when the claim is not there any more. Storage may fail for less than half a lease."""
        while True:
            if opening.done():
                opening.result()
            begin = time.monotonic()
            try:
                found = await asyncio.to_thread(self._look, restore=False)
            except ResourceError:
                if not self.is_held:
                    raise
            else:
                if found != self._mine:
                    return
                # Without locks, the last beat may have overwritten a later claim, whose holder works by now.
                if self._has_lapsed and not self._storage.has_locks:
                    return
                self._looked = begin
            await asyncio.sleep(self._lease_s / _LOOKS)

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
