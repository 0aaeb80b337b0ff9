"""CPUs of a run: its workers take some, and the tasks that make crops beside them need the rest."""

from __future__ import annotations

import math

import ray

from ray_sr.cluster import capacity, task_cpus
from ray_sr.errors import ResourceError
from ray_sr.recipes.training import TrainingSpec


def worker_cpus(training: TrainingSpec) -> float:
    """CPUs that each worker reserves. The one worker of a cluster with one CPU leaves half of it to the crops."""
    have = capacity().get("CPU", 0)
    alone = fewest_workers(training) == 1
    return min(training.cpus_per_worker, have - task_cpus()) if alone and 0 < have < 2 else training.cpus_per_worker


def fewest_workers(training: TrainingSpec) -> int:
    """With how many workers a run begins at least."""
    return training.min_workers or training.workers


def missing_room(workers: int, cpus: float) -> str | None:
    """Why Ray could never place so many workers of `cpus` each and a task beside them, and what to change."""
    have, task = capacity().get("CPU", 0), task_cpus()
    if workers * cpus + task > have:
        share = math.floor(100 * max(0.0, have - task) / workers) / 100
        lower = f"lower training.cpus_per_worker ({share:g})" if share else "it needs more CPUs"
        several = " or training.workers" if workers > 1 else ""
        return f"{workers} workers with {cpus:g} CPUs leave none of {have:g} CPUs to make crops: {lower}{several}"
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    largest = max(nodes, default=0)
    if cpus > largest and have <= sum(nodes):  # no autoscaler may bring larger ones
        return f"no node has the {cpus:g} CPUs of a worker: lower training.cpus_per_worker ({largest:g} at most)"
    return None


def require_room(training: TrainingSpec) -> None:
    """Raises ResourceError where the run would never begin."""
    if missing := missing_room(fewest_workers(training), worker_cpus(training)):
        raise ResourceError(missing)
