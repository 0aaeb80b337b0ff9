"""Connects to Ray: the cluster of RAY_ADDRESS, or a Ray of this process's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_sr.errors import ClusterError, ResourceError
from ray_sr.storage import first_line

CAPACITY = "RAY_SR_CAPACITY"

# Ray reads these when it starts; what a user has set wins.
_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker is shown twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in workers and driver
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES of workers without GPUs
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
}


def connect(verbose: bool = False, *, dashboard: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS (set inside `ray job submit`), else start Ray on this machine.

    `dashboard`: start it with the latter, where something asks Ray's state API.
    Raises ClusterError where the cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _prepare(verbose)
        try:
            ray.init(address=address, logging_level=_level(verbose), log_to_driver=verbose)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClusterError(f"cannot reach the Ray cluster at {address}: {first_line(error)}") from None
    else:
        local_ray(verbose=verbose, dashboard=dashboard)


def local_ray(
    cpus: int | None = None,
    *,
    temporary: str | None = None,
    object_store_bytes: int | None = None,
    verbose: bool = False,
    dashboard: bool = False,
) -> None:
    """Start Ray on this machine for this process alone.

    `dashboard` serves Ray's web page and state API on 127.0.0.1; starting it takes a few seconds.
    `cpus` is by default the machine's, but 2 at least: one trains while the other makes crops.
    """
    import ray

    _prepare(verbose)
    options: dict[str, Any] = {"_temp_dir": temporary} if temporary else {}
    ray.init(
        address="local",
        num_cpus=cpus or max(2, len(os.sched_getaffinity(0))),
        include_dashboard=dashboard,
        configure_logging=True,
        logging_level=_level(verbose),
        log_to_driver=verbose,
        object_store_memory=object_store_bytes,
        **options,
    )


def capacity() -> dict[str, float]:
    """Resources of the cluster, and those that its autoscaler may bring it to: `RAY_SR_CAPACITY` of the head.

    Ray knows the latter but tells nobody; the files for `ray up` and KubeRay set it ("CPU=128,GPU=8").
    Raises ClusterError where it cannot be read.
    """
    import ray

    have = ray.cluster_resources()
    text = os.environ.get(CAPACITY, "")
    try:
        pairs = (item.split("=") for item in text.split(",") if item)
        most = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ClusterError(f"{CAPACITY}={text}: write it like CPU=128,GPU=8") from None
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def is_one_node() -> bool:
    """Whether the cluster is a single node and no autoscaler will bring others."""
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    return nodes == 1 and capacity().get("CPU", 0) <= ray.cluster_resources().get("CPU", 0)


def require_shared(*files: str) -> None:
    """Have every other node of the cluster look for these files, which are here. URIs are left out.

    Raises ResourceError where a node does not find one: its folder is no share.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    local = [file for file in files if "://" not in file]
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not local or not others:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(missing_here)
    found = [look.options(scheduling_strategy=Affinity(node, soft=False)).remote(local) for node in others]
    try:
        answers = [answer for answer in ray.get(found) if answer]
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node went while it was asked for {local[0]}: {first_line(error)}") from None
    if answers:
        raise not_shared(answers[0])


def missing_here(files: Sequence[str]) -> tuple[str, str] | None:
    """The first of these files that is not on this node, with the node's name."""
    import socket

    return next(((file, socket.gethostname()) for file in files if not Path(file).exists()), None)


def not_shared(missing: tuple[str, str]) -> ResourceError:
    """What to tell of an answer of `missing_here`."""
    file, node = missing
    return ResourceError(
        f"{Path(file).parent}: node {node} does not have it, it is a folder of one machine: several need a share "
        "that all of them have at this path, or a bucket (RAY_SR_STORAGE)"
    )


def use_token() -> None:
    """Let Ray's clients show this user's token, if there is one; to be called before Ray is imported.

    Ray's head asks for it by default, while its clients show none unless RAY_AUTH_MODE says so.
    """
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def disconnect() -> None:
    """Leave the cluster, or end the Ray that `connect` started."""
    import ray

    ray.shutdown()


def _prepare(verbose: bool) -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(_level(verbose))


def _level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.ERROR
