"""Files for `ray up`, for KubeRay, and the image, checked without a cloud."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeDeploySchema

from ray_sr.cli import cli
from ray_sr.serving.options import ServiceOptions
from ray_sr.upscaling.accelerator import LEAST_DRIVER
from tests.shared_data import shared_folder

ROOT = Path(__file__).parents[2]
CLUSTERS = ("cluster.yaml", "clusters/gcp.yaml", "clusters/machines.yaml")
MANIFESTS = {"cluster.yaml": "RayCluster", "train.yaml": "RayJob", "serve.yaml": "RayService"}
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster(name: str) -> None:
    config = read(name)
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))
    broken = {**config, "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_closed(name: str) -> None:
    """Every node and client shows the token; the dashboard answers on the head alone."""
    config = read(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert any(option.startswith("--env RAY_SR_STORAGE=") for option in config["docker"]["run_options"])


@pytest.mark.parametrize("name", CLUSTERS[:2])
def test_nodes_of_a_cloud_come_and_go_with_the_work(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] <= 15
    workers = {key: value for key, value in types.items() if key != "head"}
    assert all(node["min_workers"] == 0 for node in workers.values())
    spot, demand = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["resources"] == demand["resources"]
    assert spot["priority"] > demand["priority"]
    assert "GPU" not in types["data"]["resources"]
    assert any("python -m ray_sr.cluster.preemption" in line for line in config["worker_start_ray_commands"])


def test_machines_have_a_driver_for_torch() -> None:
    """Ray's own default on AWS is an image of 2023. On Google's machines the driver is part of the image's name.

    On AWS a parameter names the newest image of a family, which the head may look up when it starts a node.
    """
    aws = {node["node_config"]["ImageId"] for node in read("cluster.yaml")["available_node_types"].values()}
    (image,) = aws
    assert image.startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-")
    region, parameter = read("cluster.yaml")["provider"]["region"], image.removeprefix("resolve:ssm:")
    allowed = {
        resource
        for statement in read("clusters/aws-iam-head.json")["Statement"]
        if "ssm:GetParameters" in statement["Action"]
        for resource in [statement["Resource"]]
    }
    assert allowed == {f"arn:aws:ssm:{region}::parameter{parameter}"}
    google = read("clusters/gcp.yaml")["available_node_types"]
    images = {
        disk["initializeParams"]["sourceImage"] for n in google.values() for disk in n["node_config"]["disks"]
    }
    assert all(int(image.rpartition("-nvidia-")[2]) >= LEAST_DRIVER for image in images)


def test_the_image_asks_for_gpus() -> None:
    """Without these NVIDIA's toolkit gives the containers of `ray up` none."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "NVIDIA_VISIBLE_DEVICES=all" in dockerfile
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in dockerfile


@pytest.mark.parametrize("name", CLUSTERS[:2])
def test_jobs_are_told_what_the_nodes_of_a_cloud_come_to(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    count = {"data": types["data"]["max_workers"], "gpu-spot": types["gpu-spot"]["max_workers"]}
    assert sum(count.values()) == config["max_workers"]  # the other GPU nodes come in place of spot ones
    assert capacity_of(config["docker"]["run_options"]) == {
        "CPU": sum(types[kind]["resources"]["CPU"] * number for kind, number in count.items()),
        "GPU": sum(types[kind]["resources"].get("GPU", 0) * number for kind, number in count.items()),
    }


def capacity_of(options: list[str]) -> dict[str, int]:
    (text,) = [option.removeprefix("--env RAY_SR_CAPACITY=") for option in options if "RAY_SR_CAPACITY" in option]
    return {name: int(value) for name, value in (item.split("=") for item in text.split(","))}


@pytest.mark.parametrize("name", ["cluster.yaml", "train.yaml"])
def test_jobs_are_told_what_the_pods_come_to(name: str) -> None:
    cluster = cluster_of(read(f"kubernetes/{name}")["spec"])
    groups = [cluster["headGroupSpec"], *(g for g in cluster["workerGroupSpecs"] if g["groupName"] == "gpu")]
    (head, trains) = [group["template"]["spec"]["containers"][0]["env"] for group in groups]
    told = [f"--env RAY_SR_CAPACITY={item['value']}" for item in head if item["name"] == "RAY_SR_CAPACITY"]
    assert next(item for item in head if item["name"] == "RAY_SR_CAPACITY") in trains
    have = {"CPU": 0, "GPU": 0}
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        asked = container["resources"]["requests"]
        have["CPU"] += group["maxReplicas"] * int(asked["cpu"])
        have["GPU"] += group["maxReplicas"] * int(asked.get("nvidia.com/gpu", 0))
    assert capacity_of(told) == have


def test_the_cluster_on_aws_has_the_least_rights() -> None:
    config = read("cluster.yaml")
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"]
                for name, node in config["available_node_types"].items()}  # fmt: skip
    assert profiles.pop("head") == "ray-sr-head"
    assert set(profiles.values()) == {"ray-sr-worker"}
    for node in config["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    for rule in config["provider"]["security_group"]["IpPermissions"]:
        assert rule["ToPort"] == 22
        assert all(address["CidrIp"].endswith("/32") for address in rule["IpRanges"])
    for role in ("head", "worker"):
        for statement in read(f"clusters/aws-iam-{role}.json")["Statement"]:
            assert not any("*" in action for action in statement["Action"])
            reads_only = all(":Describe" in action for action in statement["Action"])
            assert statement["Resource"] != "*" or reads_only
    worker = json.dumps(read("clusters/aws-iam-worker.json"))
    assert "ec2:" not in worker
    assert "iam:" not in worker


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with nothing allowed beside the properties that it lists."""
    made = copy.deepcopy(schema)
    for part in walk(made):
        if "properties" in part and isinstance(part["properties"], dict):
            part.setdefault("additionalProperties", False)
    return made


def walk(part: Any) -> Any:
    if isinstance(part, dict):
        yield part
        for value in list(part.values()):
            yield from walk(value)
    elif isinstance(part, list):
        for value in part:
            yield from walk(value)


def crd(kind: str) -> dict[str, Any]:
    """The strict schema of a kind's spec. That of RayCluster is the part of RayJob where it stands."""
    name = {"RayService": "crd_rayservices.yaml"}.get(kind, "crd_rayjobs.yaml")
    text = (shared_folder("reference") / "kuberay" / name).read_text()
    definition = yaml.load(text, yaml.CSafeLoader)  # the loader in Python takes seconds for it
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    spec = versions["v1"]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return strict(spec["properties"]["rayClusterSpec"] if kind == "RayCluster" else spec)


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_accepts_the_manifest(name: str) -> None:
    manifest = read(f"kubernetes/{name}")
    assert manifest["kind"] == MANIFESTS[name]
    schema = crd(manifest["kind"])
    validator = jsonschema.validators.validator_for(schema)(schema)  # `jsonschema.validate` first checks the schema
    validator.validate(manifest["spec"])
    broken = copy.deepcopy(manifest["spec"])
    cluster_of(broken)["workerGroupSpecs"][0]["replicas_"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replicas_"):
        validator.validate(broken)


def cluster_of(spec: dict[str, Any]) -> dict[str, Any]:
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_closed_and_shares_its_storage(name: str) -> None:
    cluster = cluster_of(read(f"kubernetes/{name}")["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    for container in containers:
        environment = {item["name"]: item["value"] for item in container["env"]}
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert environment["RAY_SR_STORAGE"] in mounts
    claims = [part["claimName"] for group in groups for part in walk(group) if "claimName" in part]
    documents = yaml.safe_load_all((ROOT / "kubernetes/storage.yaml").read_text())
    made = {document["metadata"]["name"] for document in documents}
    assert set(claims) <= made


def test_the_training_job_is_a_command_that_exists() -> None:
    spec = read("kubernetes/train.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words.pop(0) == "ray-sr"
    command = cli.commands[words.pop(0)]
    context = command.make_context("train", words)
    assert context.params["or_begin"]
    from ray_sr.recipes.reader import load_recipe

    recipe = load_recipe(context.params["recipe_name"], context.params["overrides"])
    groups = {
        g["groupName"]: g for g in read("kubernetes/train.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert recipe.training.workers <= groups["gpu"]["maxReplicas"]


def test_serve_knows_every_key_of_the_service() -> None:
    config = yaml.safe_load(read("kubernetes/serve.yaml")["spec"]["serveConfigV2"])
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    (application,) = config["applications"]
    ServiceOptions.model_validate(application["args"])
    for deployment in application["deployments"]:
        assert set(deployment) <= set(DeploymentSchema.model_fields)
        assert set(deployment.get("autoscaling_config", {})) <= set(AutoscalingConfig.model_fields)
    ServeDeploySchema.model_validate(config)


def test_the_image_is_made_of_pinned_packages() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert "--require-hashes -r requirements.lock" in text
    (base,) = re.findall(r"^FROM (\S+)$", text, flags=re.MULTILINE)
    assert ":" in base
    assert not base.endswith(":latest")
    assert re.search(r"^USER ray$", text, flags=re.MULTILINE)
    copied = [
        name for found in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", text, re.MULTILINE) for name in found.split()
    ]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    images = set(re.findall(r"image: (\S+)", "".join((ROOT / name).read_text() for name in CLUSTERS)))
    assert images == {"ray-sr:0.1.0"}
