"""The Serve application: ingress, owner of the jobs and generators, with every setting explicit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ray_sr.cluster import capacity
from ray_sr.errors import ResourceError
from ray_sr.serving.ingress import Ingress
from ray_sr.serving.job_owner import JobOwner
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.replica import AllModelsReplica, GeneratorReplica
from ray_sr.serving.schemas import JOB_OWNER

_INGRESS_TARGET = 32  # requests under way at an ingress replica, most of which wait
# The budgets of the ingress refuse before these do. Serve's own queues only have to be longer than any
# burst: its counting refuses far below its nominal capacity.
_INGRESS_CPUS = 0.1
_OWNER_CPUS = 0.1
_INGRESS: dict[str, Any] = {
    "max_ongoing_requests": 256,
    "max_queued_requests": 1024,
    "graceful_shutdown_wait_loop_s": 1.0,
    "graceful_shutdown_timeout_s": 70.0,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 20.0,
    "ray_actor_options": {"num_cpus": _INGRESS_CPUS},
}
_OWNER: dict[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 1 << 14,  # each client that follows a job is one
    "max_queued_requests": 1024,
    "graceful_shutdown_wait_loop_s": 1.0,
    "graceful_shutdown_timeout_s": 10.0,
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 20.0,
    "ray_actor_options": {"num_cpus": _OWNER_CPUS},
}
_GENERATOR: dict[str, Any] = {
    "max_queued_requests": 1024,
    "graceful_shutdown_wait_loop_s": 1.0,
    "graceful_shutdown_timeout_s": 70.0,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 20.0,
    "max_constructor_retry_count": 3,
}


def build(args: ServiceOptions | Mapping[str, Any]) -> Application:
    """The application. Serve passes `args` of the config file, or `key=value` of `serve run`, as a mapping.

    Raises pydantic.ValidationError for an unknown key or a value out of range.
    """
    options = fit_to_cluster(ServiceOptions.model_validate(args))
    settings = deployment_settings(options)
    generators = []
    for number, model in enumerate(options.models, 1):
        name = "Generator" if number == 1 else f"Generator{number}"
        replica = AllModelsReplica if options.all_models else GeneratorReplica
        generators.append(serve.deployment(name=name, **settings)(replica).bind(options, model))
    return assemble(options, *generators)


def assemble(options: ServiceOptions, *generators: Application) -> Application:
    """The application of these generator deployments, one for each model of the options."""
    owner = serve.deployment(name=JOB_OWNER, **_OWNER)(JobOwner).bind(options, *generators)
    settings = {**_INGRESS, **_ingress_replicas(options)}
    ingress = serve.deployment(name="Ingress", **settings)(serve.ingress()(Ingress))
    return ingress.bind(options, owner, *generators)


def _ingress_replicas(options: ServiceOptions) -> dict[str, Any]:
    least, most = options.ingress_replicas, options.most_ingresses
    if least == most:
        return {"num_replicas": least}
    return {"autoscaling_config": _autoscaling(options, least, most, target=_INGRESS_TARGET)}


def fit_to_cluster(options: ServiceOptions) -> ServiceOptions:
    """Settles the resources of a generator replica that were left open, so that all replicas of all models fit.

    A whole GPU each, or equal shares where there are fewer GPUs; without GPUs, as many cores as let all run on the
    largest machine with one core left for ingress and codecs. These are busy for a small part of the time: where
    the network has no GPU, its threads are meant for all cores.
    """
    machines = _machines()
    replicas = options.max_replicas * len(options.models)
    gpus, cpus, threads = options.gpus, options.cpus, options.threads
    if gpus is None:
        gpus = 0.0 if options.device == "cpu" else _gpu_share(machines, replicas)
    if cpus is None:
        cores = max((machine.get("CPU", 1.0) for machine in machines), default=1.0)
        there = min(replicas, max(map(partial(_on_gpus, gpus=gpus), machines), default=0)) if gpus else replicas
        share = _core_share(cores, max(1, there))
        cpus = min(1.0, share) if gpus else share
        threads = threads or (1 if gpus else max(1, int(cores // replicas)))
    return options.model_copy(update={"cpus": cpus, "gpus": gpus, "threads": threads or max(1, int(cpus))})


def require_room(options: ServiceOptions) -> None:
    """Refuses settled options whose replicas at rest Ray could never place: Serve would wait for ever, in silence.

    Raises ResourceError that says what is missing.
    """
    machines, cpus, gpus = _machines(), options.cpus or 0.0, options.gpus or 0.0
    wanted = options.min_replicas * len(options.models)
    front = _INGRESS_CPUS * options.ingress_replicas + _OWNER_CPUS

    def places(ingress: int) -> int:
        """How many replicas fit where the ingress and the owner of the jobs are on that machine."""
        found = 0
        for number, machine in enumerate(machines):
            cores = machine.get("CPU", 0.0) - front * (number == ingress)
            limits = [cores / cpus if cpus else wanted, _on_gpus(machine, gpus) if gpus else wanted]
            found += max(0, int(min(limits) + 1e-6))
        return found

    room = max((places(i) for i in range(len(machines))), default=wanted)
    if room >= wanted:
        return
    have = {name: sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU")}
    each = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    raise ResourceError(
        f"{len(options.models)} model(s) with {options.min_replicas} replica(s) of {each} each, and an ingress of "
        f"{front:g} CPUs: the cluster's {have['CPU']:g} CPUs and {have['GPU']:g} GPUs have room for {room} "
        f"replica(s), not {wanted}: serve fewer, or lower cpus or gpus of a replica"
    )


def _machines() -> list[dict[str, float]]:
    """Resources of each node, and as one more what the autoscaler may add to them; none before Ray runs."""
    if not ray.is_initialized():
        return []
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    more = {name: capacity().get(name, 0.0) - have for name, have in total.items()}
    return nodes + ([more] if any(value > 0 for value in more.values()) else [])


def _gpu_share(machines: Sequence[Mapping[str, float]], replicas: int) -> float:
    """What each replica gets of a GPU, rounded down to what Ray counts in; 0 where there is none."""
    there = sum(int(machine.get("GPU", 0)) for machine in machines)
    return math.floor(1e4 / math.ceil(replicas / there)) / 1e4 if there else 0.0


def _on_gpus(machine: Mapping[str, float], gpus: float) -> int:
    """How many replicas the GPUs of a machine have room for; a share lies on one GPU."""
    there = machine.get("GPU", 0.0)
    return int(there) * int(1 / gpus) if gpus < 1 else int(there / gpus)


def _core_share(cores: float, replicas: int) -> float:
    whole = (cores - 1) // replicas
    return whole if whole >= 1 else math.floor(100 * (cores - 0.5) / replicas) / 100


def deployment_settings(options: ServiceOptions) -> dict[str, Any]:
    """Serve's settings of the generator deployment, as keywords of `serve.deployment`."""
    return {
        **_GENERATOR,
        "max_ongoing_requests": options.requests_per_replica,
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
        **_replicas(options),
    }


def _replicas(options: ServiceOptions) -> dict[str, Any]:
    if options.min_replicas == options.max_replicas:
        return {"num_replicas": options.min_replicas}
    target = max(1, options.requests_per_replica // 2)
    return {"autoscaling_config": _autoscaling(options, options.min_replicas, options.max_replicas, target)}


def _autoscaling(options: ServiceOptions, least: int, most: int, target: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=target,
        look_back_period_s=max(2.0, 4 * options.upscale_delay_s),
        upscale_delay_s=options.upscale_delay_s,
        downscale_delay_s=options.downscale_delay_s,
    )
