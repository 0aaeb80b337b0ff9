"""What each replica gets of the machines, and what cannot be placed on them at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_sr.errors import ResourceError
from ray_sr.serving import app
from ray_sr.serving.app import fit_to_cluster, require_room
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import running_service

TWO_MODELS = {"model": "best", "further_models": ("bicubic",)}
Cluster = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Lets the service see machines that are not there."""

    def of(*machines: dict[str, float]) -> None:
        monkeypatch.setattr(app, "_machines", lambda: list(machines))

    return of


@pytest.mark.parametrize("cores", [1, 2, 4, 64])
@pytest.mark.parametrize("gpus", [0, 1, 2, 3])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_two_models_have_room_on_every_machine(cluster: Cluster, cores: int, gpus: int, replicas: int) -> None:
    cluster({"CPU": cores, **({"GPU": gpus} if gpus else {})})
    options = ServiceOptions(**TWO_MODELS, min_replicas=replicas, max_replicas=replicas)
    fitted = fit_to_cluster(options)
    require_room(fitted)
    assert fitted.cpus is not None
    assert fitted.gpus is not None
    assert 2 * replicas * fitted.cpus + 0.2 <= cores, "beside ingress and owner of the jobs"
    assert bool(fitted.gpus) == bool(gpus)


def test_shares_follow_from_models_times_replicas(cluster: Cluster) -> None:
    def gpus(**fields: object) -> float | None:
        return fit_to_cluster(ServiceOptions.model_validate(fields)).gpus

    cluster({"CPU": 64, "GPU": 1})
    assert [gpus(), gpus(**TWO_MODELS), gpus(max_replicas=3)] == [1.0, 0.5, 0.3333]
    assert gpus(device="cpu") == 0
    cluster({"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2})
    assert [gpus(**TWO_MODELS), gpus(**TWO_MODELS, max_replicas=2), gpus(**TWO_MODELS, max_replicas=3)] == [
        1,
        1,
        0.5,
    ]
    cluster({"CPU": 16})
    assert fit_to_cluster(ServiceOptions(**TWO_MODELS)).cpus == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cpus": 4.0}, "have room for 1 replica(s), not 2"),
        ({"cpus": 8.0}, "have room for 0 replica(s), not 2"),
        ({"gpus": 1.0, "cpus": 1.0}, "2 model(s) with 1 replica(s) of 1 CPUs and 1 GPUs each"),
        ({"gpus": 0.7, "cpus": 1.0}, "8 CPUs and 1 GPUs have room for 1 replica(s)"),
        ({"gpus": 0.5, "cpus": 1.0, "min_replicas": 2, "max_replicas": 2}, "room for 2 replica(s), not 4"),
    ],
)
def test_what_cannot_be_placed_is_told(cluster: Cluster, fields: dict[str, float], told: str) -> None:
    cluster({"CPU": 8, "GPU": 1})
    with pytest.raises(ResourceError) as caught:
        require_room(fit_to_cluster(ServiceOptions.model_validate({**TWO_MODELS, **fields})))
    assert told in str(caught.value)


def test_machines_that_the_autoscaler_brings_count(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ServiceOptions(gpus=1, cpus=2, min_replicas=2, max_replicas=2)
    with pytest.raises(ResourceError, match="0 GPUs have room for 0"):
        require_room(fit_to_cluster(wanted))
    monkeypatch.setenv("RAY_SR_CAPACITY", "CPU=32,GPU=2")
    require_room(fit_to_cluster(wanted))


def test_a_service_without_room_is_refused_before_it_starts(ray_local: None) -> None:
    greedy = ServiceOptions(model="bicubic", cpus=3, min_replicas=2, max_replicas=2)
    with pytest.raises(ResourceError, match="not 2"), running_service(greedy):
        pytest.fail("the service must not start")
