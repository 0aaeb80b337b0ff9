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
CONFIG: dict[str, Any] = yaml.safe_load((SERVE / "config.yaml").read_text())
APPLICATION: dict[str, Any] = CONFIG["applications"][0]


def unknown_keys(section: dict[str, Any], schema: Any) -> set[str]:
    return set(section) - set(schema.model_fields)


def test_every_key_is_known_to_serve() -> None:
    assert not unknown_keys(CONFIG, ServeDeploySchema)
    assert not unknown_keys(CONFIG["http_options"], HTTPOptionsSchema)
    assert not unknown_keys(APPLICATION, ServeApplicationSchema)
    for deployment in APPLICATION["deployments"]:
        assert not unknown_keys(deployment, DeploymentSchema)
        assert not unknown_keys(deployment.get("autoscaling_config", {}), AutoscalingConfig)
        assert not unknown_keys(deployment.get("ray_actor_options", {}), RayActorOptionsSchema)
    ServeDeploySchema.model_validate(CONFIG)


def test_arguments_fit_the_builder_and_names_its_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    ServiceOptions.model_validate(APPLICATION["args"])
    monkeypatch.syspath_prepend(SERVE.parent)
    assert import_attr(APPLICATION["import_path"]) is build
    built = {"Ingress", "Generator"}
    assert {deployment["name"] for deployment in APPLICATION["deployments"]} <= built


def test_it_listens_on_this_machine_only() -> None:
    refuse_public_host(CONFIG["http_options"]["host"], guarded=False)
