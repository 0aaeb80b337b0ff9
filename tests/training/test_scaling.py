"""Which resources a run asks for, and which it is refused for, by what a cluster says it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from ray_sr.errors import ResourceError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.service import codec_processes
from ray_sr.training import launch, room
from ray_sr.training.compute import Compute
from ray_sr.training.worker import Worker
from ray_sr.tuning import budget
from ray_sr.upscaling import files


def recipe(*training: str) -> Recipe:
    changes = [f"training.{change}" for change in training]
    return parse_recipe("{name: t, data: {batch: 16}, pretrain: {steps: 1}}", changes)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (launch, room, budget):
        monkeypatch.setattr(module, "capacity", lambda: {"CPU": 64.0, "GPU": 2.0})


@pytest.mark.usefixtures("ray_local", "cluster")
def test_too_few_gpus_are_no_reason_to_train_on_cpus_in_silence() -> None:
    with pytest.raises(ResourceError) as caught:
        launch._scaling(recipe("workers=4"))
    assert "training.workers 4 with 1 GPUs each need 4, the cluster has 2" in str(caught.value)
    assert "lower training.workers, or train on CPUs with training.device=cpu" in str(caught.value)


@pytest.mark.usefixtures("ray_local", "cluster")
@pytest.mark.parametrize(
    ("training", "gpus"),
    [
        (["workers=2"], 1.0),
        (["workers=4", "min_workers=2"], 1.0),
        (["workers=1", "gpus_per_worker=0.5"], 0.5),
        (["workers=4", "device=cpu"], None),
    ],
)
def test_workers_get_gpus_where_there_are_enough(training: list[str], gpus: float | None) -> None:
    scaling = launch._scaling(recipe(*training))
    assert bool(scaling.use_gpu) is (gpus is not None)
    assert scaling.resources_per_worker is not None
    assert scaling.resources_per_worker.get("GPU") == gpus


@pytest.mark.usefixtures("ray_local")
def test_a_cluster_without_gpus_trains_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (launch, room):
        monkeypatch.setattr(module, "capacity", lambda: {"CPU": 64.0})
    assert not launch._scaling(recipe("workers=4")).use_gpu
    with pytest.raises(ResourceError, match="need a GPU each, the cluster has 0"):
        launch._scaling(recipe("workers=4", "device=gpu"))


def test_trials_on_cpus_are_timed_there_though_a_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    tiny = parse_recipe(
        "{name: t, scale: 2, data: {crop: 16, batch: 4}, generator: {kind: srresnet, blocks: 1, channels: 8}, "
        "pretrain: {steps: 1}}"
    )
    assert budget._step_seconds(tiny.dump(), "cpu") > 0


def test_what_is_compiled_is_the_network_with_its_exchange_of_gradients(tmp_path: Path) -> None:
    """A network compiled inside of DDP hands over all gradients at once, when nothing is left to overlap with."""
    worker = Worker.__new__(Worker)
    worker.recipe, worker.world = recipe("compile=true"), 2
    worker.compute = Compute(torch.device("cpu"), None, torch.contiguous_format)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        inner = nn.Conv2d(3, 3, 3)
        wrapped = worker._distributed(inner)
    finally:
        distributed.destroy_process_group()
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
    assert wrapped.module is inner
    assert wrapped._compiled_call_impl is not None
    assert inner._compiled_call_impl is None


@pytest.mark.parametrize(("cores", "writers", "codecs"), [(1, 2, 1), (8, 4, 8), (32, 16, 32), (192, 16, 32)])
def test_encoders_grow_with_the_cores(
    cores: int, writers: int, codecs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert files._writers() == writers
    assert codec_processes(ServiceOptions(model="any")) == codecs
    assert codec_processes(ServiceOptions(model="any", codec_processes=3)) == 3
