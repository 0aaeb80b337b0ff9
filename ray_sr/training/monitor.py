"""Carries what the workers tell to the driver, and the driver's wish to stop to the workers.

An actor of its own and not `ray.train.report`: that is a barrier for all workers and keeps no metrics that
come without a checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sr.storage.local import atomic_write

Record = dict[str, Any]
LOOK_SECONDS = 0.02


class _Monitor:
    """State of the actor: waiting records, counted from the beginning, and whether to stop."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._taken = 0  # records that the driver got so far; with its next call it has written them
        self._written = 0
        self._stop = False
        self._refused = False

    async def log(self, record: Record) -> bool:
        """Take a record; answers whether the run is to stop."""
        self._records.append(record)
        self._refused |= record["event"] == "error"
        return self._stop

    async def drain(self, seconds: float) -> list[Record]:
        """The records that wait, or those of the next `seconds`. To call again says that the last are written."""
        self._written = self._taken
        deadline = time.monotonic() + seconds
        while not self._records and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        records, self._records = self._records, []
        self._taken += len(records)
        return records

    async def written(self) -> None:
        """Returns when the driver has written every record so far, to the bucket too if the run lies in one.

        Those that come meanwhile are not waited for: of fast steps there are always some.
        """
        self._records.append({"event": "flush"})
        last = self._taken + len(self._records)
        while self._written < last:
            await asyncio.sleep(LOOK_SECONDS)

    async def refused(self) -> bool:
        """Whether a worker told of an error that a person has to mend: workers that start again stop at once."""
        return self._refused

    async def stop(self) -> None:
        self._stop = True

    async def stopping(self) -> bool:
        return self._stop


def start_monitor() -> Any:
    """A handle of a new monitor actor on the driver's node, which lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Monitor).options(num_cpus=0, scheduling_strategy=here).remote()


class Journal:
    """metrics.jsonl of a run: one JSON object a line, in the order of steps, also after restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: FileIO | None = None

    def write(self, record: Record) -> None:
        """Append a record. `event: start` drops the lines of steps that are about to be done again."""
        if record.get("event") == "start":
            self._forget_after(int(record["step"]))
        if self._stream is None:
            self._stream = self.path.open("ab", buffering=0)  # nothing is left to write when it is closed
        self._stream.write((json.dumps(record) + "\n").encode())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _forget_after(self, step: int) -> None:
        self.close()
        if not self.path.exists():
            return
        kept = [record for record in read_journal(self.path) if record["step"] <= step]
        atomic_write(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def read_journal(path: Path, keep: Callable[[Record], bool] = lambda record: True) -> list[Record]:
    """The records of a metrics.jsonl; lines that a crash has cut off or damaged are left out."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            continue
        if isinstance(record, dict) and {"event", "step"} <= record.keys() and keep(record):
            records.append(record)
    return records
