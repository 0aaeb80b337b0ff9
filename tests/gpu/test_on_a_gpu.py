"""What only a real GPU can show. `make test-gpu` runs it; elsewhere each test says what it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ray_sr.cli import cli
from ray_sr.errors import ResourceError
from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.store import load_model
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState
from ray_sr.training.steps import MicroBatch, build_step
from ray_sr.training.worker import Worker
from ray_sr.upscaling import Engine
from ray_sr.upscaling.accelerator import describe_runtime
from ray_sr.upscaling.tile_memory import measured_bytes_per_pixel
from tests.fake_cuda import kept_settings
from tests.photos import real_photos
from tests.training.test_fake_cuda import HARDEST

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason=f"needs an NVIDIA GPU that torch sees; here: {describe_runtime()}"
)
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with kept_settings():
        yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def trained(steps: int, *changes: str, device: torch.device = CUDA) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after some steps of random crops, pretraining first, and their losses."""
    recipe = parse_recipe(HARDEST, ["pretrain.steps=3", "gan.steps=3", *changes])
    state = TrainState(recipe, Compute.of(recipe.training, device))
    return state, go_on(state, steps)


def go_on(state: TrainState, steps: int) -> list[dict[str, float]]:
    found = []
    step = build_step(state)
    for _ in range(steps):
        losses = step.run(random_parts(state), state.step_of_stage)
        found.append({name: float(value) for name, value in losses.items()})
        if state.advance() and not state.done:
            step = build_step(state)
    return found


def random_parts(state: TrainState) -> list[MicroBatch]:
    rng, parts, count = torch.Generator().manual_seed(state.step), [], state.recipe.training.accumulate
    for number in range(count):
        hr = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=rng)
        lr, pinned = hr[:, ::2, ::2].contiguous(), state.compute.device.type == "cuda"
        given = [photos.pin_memory() if pinned else photos for photos in (lr, hr)]
        parts.append(MicroBatch(*map(state.compute.to_input, given), seed=number, share=1 / count))
    return parts


def test_doctor_tells_of_the_gpu() -> None:
    facts = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    assert "compute capability" in facts["gpus"][0]
    assert "driver" in facts["gpu_runtime"]


def test_the_cpu_never_waits_in_a_step() -> None:
    state, _ = trained(1)
    for _ in range(2):  # of either stage
        step = build_step(state)
        parts = random_parts(state)
        step.run(parts, 0)  # chooses algorithms and allocates
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.run(parts, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        while state.stage == "pretrain":
            state.advance()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_a_cpu(precision: str) -> None:
    settings = (f"training.precision={precision}", "training.tf32=false", "pretrain.optimizer={kind: adam}")
    ours, theirs = (trained(2, *settings, device=device)[1] for device in (CUDA, CPU))
    for name, value in theirs[0].items():
        assert ours[0][name] == pytest.approx(value, rel=0.05 if precision == "bf16" else 1e-3), name


def test_deterministic_training_repeats_bit_for_bit() -> None:
    first, second = (trained(5, "training.deterministic=true")[0].snapshot().state for _ in range(2))
    for name, value in first["generator"].items():
        assert torch.equal(value, second["generator"][name]), name


def test_a_checkpoint_of_a_gpu_goes_on_there_and_on_a_cpu(tmp_path: Path) -> None:
    state, _ = trained(4)
    state.snapshot().write(tmp_path)
    for device in (CUDA, CPU):
        other = TrainState(state.recipe, Compute.of(state.recipe.training, device))
        other.load(tmp_path)
        assert other.step == 4
        assert all(np.isfinite(value) for value in go_on(other, 1)[0].values())


@pytest.mark.parametrize("tf32", ["true", "false"])
def test_upscaling_is_exact_inside_a_training(tf32: str) -> None:
    trained(1, f"training.tf32={tf32}")
    model, photo = load_model("light-x4"), real_photos()["coffee"][:96, :128]
    ours, theirs = (
        Engine(model.module, model.capability, device=device, precision="float32").run(photo)
        for device in (CUDA, CPU)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_copies_beside_the_network_change_no_pixel(kind: type) -> None:
    """Read too early, or overwritten on the way, whole tiles would differ."""
    model = load_model("light-x4")
    photo = np.tile(real_photos()["coffee"], (2, 2, 1))[:640, :640].astype(kind)
    waiting, beside = (Engine(model.module, model.capability, device=CUDA, tile=128) for _ in range(2))
    waiting.copies = None
    expected = waiting.run(photo, kind)
    assert beside.copies
    for _ in range(3):
        assert np.abs(beside.run(photo, kind).astype(int) - expected).max() <= 1
    assert beside.stats.tiles > 3 * 9


def test_a_tile_that_does_not_fit_is_halved_and_the_result_stays() -> None:
    model = load_model("light-x4")
    photo = np.tile(real_photos()["coffee"], (4, 4, 1))[:1024, :1024]
    whole = Engine(model.module, model.capability, device=CUDA, precision="float32", tile=256).run(photo, np.uint8)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (300 << 20)) / total)
    engine = Engine(model.module, model.capability, device=CUDA, precision="float32", tile=1024)
    halved = engine.run(photo, np.uint8)
    assert engine.stats.halvings
    assert np.abs(halved.astype(int) - whole).max() <= 1


def test_a_batch_that_does_not_fit_is_told_with_what_does() -> None:
    recipe = parse_recipe(
        "{name: large, scale: 2, data: {crop: 256, batch: 64, crops_per_image: 4}, "
        "generator: {kind: srresnet, blocks: 4, channels: 64}, pretrain: {steps: 2}}"
    )
    worker = Worker.__new__(Worker)
    worker.recipe, worker.world, worker.compute = recipe, 1, Compute.of(recipe.training, CUDA)
    worker.state = TrainState(recipe, worker.compute)
    worker.step = build_step(worker.state)
    torch.cuda.set_per_process_memory_fraction((2 << 30) / torch.cuda.mem_get_info()[1])
    part = MicroBatch(torch.rand(64, 3, 128, 128, device=CUDA), torch.rand(64, 3, 256, 256, device=CUDA))
    with pytest.raises(ResourceError, match=r"64 crops at once .* do: set training\.accumulate="):
        worker._train_step([part])


def test_the_memory_of_a_tile_is_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=32))).eval().cuda()
    first = measured_bytes_per_pixel(network, network.capability, CUDA, "float32", 4 * 32 * 3)
    assert first is not None
    monkeypatch.setattr("ray_sr.upscaling.tile_memory._peak", lambda *_: pytest.fail("it was measured again"))
    assert measured_bytes_per_pixel(network, network.capability, CUDA, "float32", 4 * 32 * 3) == first
