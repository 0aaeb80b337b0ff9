"""Notices that a node will be taken away: spot instances that the cloud wants back, nodes that are drained.

Ray hears of them by `ray drain-node` with a deadline (see `ray_sr.cluster.preemption`) and tells its workers,
who save a checkpoint while there is time. When the deadline has passed, Ray Train goes on from it with the
nodes at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import ray.train

LOOK_SECONDS = 4.0  # clouds leave 30 seconds (Google) to two minutes (AWS)
MOST_STEPS = 1000


@dataclass(frozen=True)
class Notice:
    """Nodes that go, and seconds until then; None where nobody said."""

    nodes: int
    seconds: float | None


@dataclass
class PreemptionWatcher:
    """Looks every few seconds, at the same steps on all workers: looking is a barrier, and so is a checkpoint.

    `agree` gives rank 0's number to all. `looked`: whether the last step was such a one.
    """

    step: int
    agree: Callable[[float], float]
    looked: bool = False
    _due: int = 0
    _since: float = field(default_factory=time.perf_counter)
    _known: set[str] = field(default_factory=set)

    def new(self, step: int) -> Notice | None:
        """Of nodes not heard of before. To be called by all workers after every step."""
        self.looked = step >= self._due
        if not self.looked:
            return None
        now = time.perf_counter()
        steps = (step - self.step) * LOOK_SECONDS / max(now - self._since, 1e-6)
        self.step, self._since = step, now
        self._due = step + int(self.agree(min(max(1.0, steps), MOST_STEPS)))
        info = ray.train.get_preemption_info()
        if info is None or self._known.issuperset(info.preempted_node_ids):
            return None
        self._known.update(info.preempted_node_ids)
        seconds = info.deadline_ms / 1000 - time.time() if info.deadline_ms else None
        return Notice(len(info.preempted_node_ids), seconds)
