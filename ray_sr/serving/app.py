"""The Serve application: ingress and generator deployments with every setting said aloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from ray_sr.serving.ingress import Ingress
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.replica import GeneratorReplica

# The budgets of the ingress refuse before these do. Serve's own queues only have to be longer than any
# burst: its counting refuses far below its nominal capacity.
_INGRESS: dict[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 256,
    "max_queued_requests": 1024,
    "graceful_shutdown_wait_loop_s": 1.0,
    "graceful_shutdown_timeout_s": 70.0,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 20.0,
    "ray_actor_options": {"num_cpus": 0.1},
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
        generators.append(serve.deployment(name=name, **settings)(GeneratorReplica).bind(options, model))
    return ingress_deployment().bind(options, *generators)


def ingress_deployment() -> Deployment:
    """The HTTP face, to be bound to ServiceOptions and a generator deployment for each of their models."""
    return serve.deployment(name="Ingress", **_INGRESS)(serve.ingress()(Ingress))


def fit_to_cluster(options: ServiceOptions) -> ServiceOptions:
    """Settles the resources of a generator replica that were left open.

    A whole GPU where the cluster has one; else as many cores as let all replicas run on the largest machine
    with one core left for ingress and codecs. These are busy for a small part of the time: where the network
    has no GPU, its threads are meant for all cores.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    gpus = options.gpus
    if gpus is None:
        gpus = float(any(machine.get("GPU", 0) >= 1 for machine in machines))
    cpus, threads = options.cpus, options.threads
    if cpus is None:
        cores = max((machine.get("CPU", 1.0) for machine in machines), default=1.0)
        cpus = 1.0 if gpus else max(1.0, (cores - 1) // options.max_replicas)
        threads = threads or (1 if gpus else max(1, int(cores // options.max_replicas)))
    return options.model_copy(update={"cpus": cpus, "gpus": gpus, "threads": threads or max(1, int(cpus))})


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
    autoscaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=max(1, options.requests_per_replica // 2),
        look_back_period_s=max(2.0, 4 * options.upscale_delay_s),
        upscale_delay_s=options.upscale_delay_s,
        downscale_delay_s=options.downscale_delay_s,
    )
    return {"autoscaling_config": autoscaling}
