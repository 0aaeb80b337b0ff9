"""`ray-sr doctor`: what this installation has, for a person and for a bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from ray_sr.commands.common import json_option, show

PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow", "pillow", "pyvips", "pydantic", "safetensors")
OPTIONAL = ("spandrel", "onnx", "onnxruntime")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Versions, devices, Ray, model store, and where VGG weights were found."""
    import torch

    from ray_sr import __version__
    from ray_sr.cluster import available_cpus
    from ray_sr.perceptual.vgg import cached_weights
    from ray_sr.store import Store
    from ray_sr.upscaling.accelerator import describe_gpu, describe_runtime
    from ray_sr.upscaling.precision import has_fast_bfloat16

    cuda = [describe_gpu(i) for i in range(torch.cuda.device_count())]
    device = torch.device("cuda" if cuda else "cpu")
    facts: dict[str, Any] = {
        "ray-sr": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
        "cpus": available_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": cuda,
        "gpu_runtime": describe_runtime(),
        "fast_bf16": has_fast_bfloat16(device),
        "ray_address": os.environ.get("RAY_ADDRESS", "none: Ray is started for each command"),
        "model_store": Store().root,
        **{f"{name}_weights": _place(cached_weights(name)) for name in ("vgg19", "vgg16")},
    }
    width = max(map(len, facts))
    show(facts, "\n".join(f"{name:{width}}  {_text(value)}" for name, value in facts.items()), as_json)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _place(path: Path | None) -> str:
    return str(path) if path else "not here: downloaded when a recipe needs them, or give features.weights"


def _text(value: Any) -> str:
    if value is None:
        return "not installed"
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
