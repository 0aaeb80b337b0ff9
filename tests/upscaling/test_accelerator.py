"""What is set for a GPU and told of it, without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_sr.errors import ResourceError
from ray_sr.recipes.training import TrainingSpec
from ray_sr.training.compute import Compute
from ray_sr.upscaling import accelerator
from ray_sr.upscaling.accelerator import (
    describe_runtime,
    driver_version,
    exact_float32,
    free_memory,
    require_usable,
    require_visible,
    set_float32_products,
)
from tests.fake_cuda import GIB, describe_card, kept_settings

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("tf32", [True, False])
def test_the_engine_computes_exactly_inside_a_training_of_either_precision(
    tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation inside a training with training.tf32=false ended the run: torch refused the older flags."""
    describe_card(monkeypatch)
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    with kept_settings():
        Compute.of(TrainingSpec(tf32=tf32), CUDA)
        trained_in = "tf32" if tf32 else "ieee"
        for _ in range(2):
            assert (matmul.fp32_precision, convolution.fp32_precision) == (trained_in, trained_in)
            assert torch.backends.cudnn.benchmark
            with exact_float32(CUDA), exact_float32(CUDA):
                assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
                assert not torch.backends.cudnn.benchmark


def test_settings_come_back_after_an_error() -> None:
    with kept_settings():
        set_float32_products("tf32")
        with pytest.raises(ValueError, match="broken"), exact_float32(CUDA):
            raise ValueError("broken")
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def test_deterministic_training_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with kept_settings():
        Compute.of(TrainingSpec(deterministic=True), CUDA)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        Compute.of(TrainingSpec(), CUDA)
        assert not torch.are_deterministic_algorithms_enabled()


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch, (7, 0))
    for refused in (lambda: require_usable(CUDA), lambda: Compute.of(TrainingSpec(), CUDA)):
        with pytest.raises(ResourceError, match=r"Made-up GPU has compute capability 7\.0, .* 7\.5 or newer"):
            refused()
    require_usable(torch.device("cpu"))


def test_a_gpu_without_bfloat16_trains_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch, (7, 5))
    with kept_settings():
        compute = Compute.of(TrainingSpec(), CUDA)
        assert compute.autocast_dtype is None
        assert "compute capability 7.5" in compute.describe()
        assert "fp32 (this GPU has no bfloat16)" in compute.describe()
        with pytest.raises(ResourceError, match="Made-up GPU has no bfloat16"):
            Compute.of(TrainingSpec(precision="bf16"), CUDA)


def test_the_driver_is_read_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(accelerator, "_DRIVER_FILE", file)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert driver_version() is None
    assert describe_runtime().endswith("for CUDA 13.2, no NVIDIA driver")
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan 1\nGCC version: 12.2.0\n")
    assert driver_version() == "570.86.10"
    assert describe_runtime().endswith("driver 570.86.10 (CUDA 13 needs 580 or newer)")
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n")
    assert describe_runtime().endswith("driver 580.95.05")


def test_a_gpu_that_torch_does_not_see_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan 1\n")
    monkeypatch.setattr(accelerator, "_DRIVER_FILE", file)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"node gpu-7: .* driver 570\.86\.10.*CUDA_VISIBLE_DEVICES=0"):
        require_visible("gpu-7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_visible("gpu-7")


def test_memory_is_planned_within_the_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    describe_card(monkeypatch)
    assert free_memory(CUDA) == 20 * GIB
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.25)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    assert free_memory(CUDA) == 5 * GIB
