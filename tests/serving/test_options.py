"""Arguments of the application and their way into Serve's settings."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ray_sr.serving.app import build, deployment_settings, fit_to_cluster
from ray_sr.serving.options import ServiceLimits, ServiceOptions, UpscaleQuery


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "x"},
        {"limits": {"bodybytes": 1}},
        {"gpus": -1},
        {"min_replicas": 3, "max_replicas": 2},
        {"limits": {"body_bytes": 10, "in_flight_bytes": 9}},
        {"limits": {"formats": []}},
        {"limits": {"formats": ["gif"]}},
    ],
)
def test_wrong_arguments_are_refused_when_the_application_is_built(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        build(wrong)


def test_strings_of_the_command_line_are_converted() -> None:
    options = ServiceOptions.model_validate({"max_replicas": "3", "gpus": "0.5"})
    assert (options.max_replicas, options.gpus) == (3, 0.5)


def test_fixed_replicas_do_not_autoscale() -> None:
    settings = deployment_settings(ServiceOptions(min_replicas=2, max_replicas=2, cpus=3, gpus=0))
    assert settings["num_replicas"] == 2
    assert "autoscaling_config" not in settings
    assert settings["ray_actor_options"] == {"num_cpus": 3, "num_gpus": 0}


def test_a_range_of_replicas_autoscales_before_a_replica_is_full() -> None:
    settings = deployment_settings(ServiceOptions(max_replicas=4, requests_per_replica=6))
    scaling = settings["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.target_ongoing_requests < settings["max_ongoing_requests"] == 6
    assert "num_replicas" not in settings


@pytest.mark.parametrize(
    ("given", "threads"), [({"cpus": 3}, 3), ({"cpus": 0.1}, 1), ({"cpus": 3, "threads": 5}, 5)]
)
def test_a_network_has_as_many_threads_as_its_replica_has_cpus(given: dict[str, float], threads: int) -> None:
    options = fit_to_cluster(ServiceOptions.model_validate(given))
    assert (options.cpus, options.threads) == (given["cpus"], threads)


@pytest.mark.parametrize(("replicas", "cpus", "threads"), [(1, 3, 4), (2, 1, 2), (9, 0.38, 1)])
def test_replicas_share_all_cores_where_none_are_given(
    ray_local: None, replicas: int, cpus: float, threads: int
) -> None:
    options = fit_to_cluster(ServiceOptions(max_replicas=replicas, gpus=0))  # the Ray of the tests has 4 CPUs
    assert (options.cpus, options.threads) == (cpus, threads)


def test_every_option_of_a_request_is_described() -> None:
    for model in (UpscaleQuery, ServiceLimits):
        assert all(field.description for field in model.model_fields.values())
