"""The config file for `serve run` and `serve deploy`. Serve itself takes misspelt keys without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from ray_sr.serving.app import build
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import refuse_public_host

SERVE = Path(__file__).resolve().parents[2] / "serve"
CONFIGS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((SERVE / name).read_text()) for name in ("config.yaml", "cluster.yaml")
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def unknown_keys(section: dict[str, Any], schema: Any) -> set[str]:
    return set(section) - set(schema.model_fields)


@every_config
def test_every_key_is_known_to_serve(name: str) -> None:
    config = CONFIGS[name]
    (application,) = config["applications"]
    assert not unknown_keys(config, ServeDeploySchema)
    assert not unknown_keys(config["http_options"], HTTPOptionsSchema)
    assert not unknown_keys(application, ServeApplicationSchema)
    for deployment in application["deployments"]:
        assert not unknown_keys(deployment, DeploymentSchema)
        assert not unknown_keys(deployment.get("autoscaling_config", {}), AutoscalingConfig)
        assert not unknown_keys(deployment.get("ray_actor_options", {}), RayActorOptionsSchema)
    ServeDeploySchema.model_validate(config)


@every_config
def test_arguments_fit_the_builder_and_names_its_deployments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (application,) = CONFIGS[name]["applications"]
    ServiceOptions.model_validate(application["args"])
    monkeypatch.syspath_prepend(SERVE.parent)
    assert import_attr(application["import_path"]) is build
    built = {"Ingress", "JobOwner", "Generator"}
    assert {deployment["name"] for deployment in application["deployments"]} <= built


@every_config
def test_number_of_ingresses_is_said_where_the_budgets_are_shared(name: str) -> None:
    (application,) = CONFIGS[name]["applications"]
    (ingress,) = [one for one in application["deployments"] if one["name"] == "Ingress"]
    assert not ingress.keys() & {"num_replicas", "autoscaling_config"}, "ingress_replicas in args says it"


@every_config
def test_who_listens_to_others_asks_for_keys(name: str) -> None:
    arguments = CONFIGS[name]["applications"][0]["args"]
    refuse_public_host(CONFIGS[name]["http_options"]["host"], guarded="keys" in arguments)
