"""What a GPU and its driver are, and whether this torch can work with them: for `doctor`, engine and training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ray_sr.errors import ResourceError

LEAST_CAPABILITY = (7, 5)  # of torch's wheels for CUDA 13: Turing
LEAST_DRIVER = 580  # of CUDA 13
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def driver_version() -> str | None:
    """NVIDIA's kernel driver as it names itself ("580.95.05"); None where there is none."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def describe_runtime() -> str:
    """torch with its CUDA, and the driver: "torch 2.15.0 for CUDA 13.2, driver 570.86 (CUDA 13 needs 580)"."""
    cuda, driver = torch.version.cuda, driver_version()
    torch_text = f"torch {torch.__version__.partition('+')[0]} " + (f"for CUDA {cuda}" if cuda else "without CUDA")
    if driver is None:
        return f"{torch_text}, no NVIDIA driver"
    old = cuda is not None and int(cuda.split(".")[0]) >= 13 and int(driver.split(".")[0]) < LEAST_DRIVER
    return f"{torch_text}, driver {driver}" + (f" (CUDA 13 needs {LEAST_DRIVER} or newer)" if old else "")


def describe_gpu(device: torch.device | int) -> str:
    """The GPU's name with its compute capability and memory, in one line."""
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name} (compute capability {capability}, {properties.total_memory / 2**30:.0f} GiB)"


def require_usable(device: torch.device) -> None:
    """Raises ResourceError, one line, for a GPU that is too old for the kernels in torch's wheels."""
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        have, least = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        raise ResourceError(
            f"{torch.cuda.get_device_name(device)} has compute capability {have}, torch's wheels need {least} or "
            "newer: use another GPU, or the CPU"
        )


def require_visible(node: str) -> None:
    """Raises ResourceError where Ray gave this process a GPU and torch sees none: it would train on the CPU."""
    if torch.cuda.is_available():
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f", CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ""
    raise ResourceError(
        f"node {node}: Ray has a GPU here that torch does not see ({describe_runtime()}{shown}): mend the "
        "driver or the container's access to it (docs/cluster.md), or train with training.device=cpu"
    )


def limit_memory(share: float, device: torch.device) -> None:
    """Keep this process to a share of a GPU's memory, so that those it shares the GPU with have theirs."""
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take: what is free, within the share it is limited to."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(free + unused, allowed - torch.cuda.memory_allocated(device))


def set_float32_products(kind: str) -> tuple[str, str]:
    """How a GPU multiplies float32 from now on, "ieee" or "tf32"; the former settings of matmul and convolution.

    By these settings alone: torch refuses to answer for the older flags (allow_tf32) where both were used.
    """
    former = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
    _set_products(kind, kind)
    return former


def _set_products(matmul: str, convolution: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = matmul
    torch.backends.cudnn.conv.fp32_precision = convolution  # type: ignore[attr-defined]


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Without TF32, whose 10 bits of mantissa are too few for 16-bit pictures and for the ends of a network.

    And without trials of cuDNN's algorithms, which are for shapes that come again and again.
    """
    if device.type != "cuda":
        yield
        return
    former, benchmark = set_float32_products("ieee"), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        _set_products(*former)
        torch.backends.cudnn.benchmark = benchmark
