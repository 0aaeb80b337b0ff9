"""What a network needs for each input pixel of a tile: measured once, and kept in the user's cache folder.

Only CUDA counts what it allocates, so only there it is measured; elsewhere the engine estimates. The figure
decides how large a tile is, which changes the result by less than rounding does, so a cache that is missing,
broken or read-only costs a measurement and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ray_sr.errors import ResourceError
from ray_sr.images import write_bytes
from ray_sr.models import Capability
from ray_sr.upscaling.accelerator import describe_gpu, describe_runtime, exact_float32

MEASURED_SIDES = (128, 256)  # the difference between the two leaves out what does not grow with a tile

PATIENCE_SECONDS = 5.0
PLAUSIBLE = 3.0  # times the estimate, or a third of it: beyond that something else was measured

_log = logging.getLogger(__name__)


class SharedDevice:
    """Lets many runs of a process use its GPU at the same time, or one measurement alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._measuring = False
        self._peak = 0

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """For a run: waits while something is measured."""
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """For a measurement: waits until nothing runs, lets nothing begin, and says whether that came in time.

        A run may wait for another one that is not let in now, for the two to run together.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring)
            self._measuring = True
            quiet = self._changed.wait_for(lambda: not self._running, PATIENCE_SECONDS)
        try:
            yield quiet
        finally:
            with self._changed:
                self._measuring = False
                self._changed.notify_all()

    def reset_peak(self, device: torch.device) -> None:
        """Count CUDA's peak anew, without losing the one so far."""
        self._peak = self.peak(device)
        torch.cuda.reset_peak_memory_stats(device)

    def peak(self, device: torch.device) -> int:
        """Most bytes that this process has held on the GPU, measurements in between or not."""
        return max(self._peak, torch.cuda.max_memory_allocated(device))


DEVICE = SharedDevice()


def measured_bytes_per_pixel(
    network: nn.Module, capability: Capability, device: torch.device, precision: str, estimate: float
) -> float | None:
    """Bytes at the peak of a run for each input pixel; None where it cannot be measured or makes no sense.

    estimate: what the engine would take without it; a figure that is many times more or less is not believed.
    """
    if device.type != "cuda":
        return None
    kind = f"{describe_gpu(device)}, {describe_runtime()}, cuDNN {torch.backends.cudnn.version()}, {precision}"
    key = hashlib.sha256(f"{kind}, {capability}, {network!r}".encode()).hexdigest()

    def measure() -> float | None:
        with DEVICE.alone() as quiet, exact_float32(device):
            value = growth(lambda side: _peak(network, capability, device, side)) if quiet else None
        return value if value is not None and estimate / PLAUSIBLE <= value <= estimate * PLAUSIBLE else None

    return cached(key, measure)


def growth(peak: Callable[[int], int]) -> float | None:
    """Bytes by which the peak grows with each pixel of a square tile; None where it does not.

    peak: bytes at the peak of a run on a tile of this side.
    """
    small, large = MEASURED_SIDES
    try:
        slope = (peak(large) - peak(small)) / (large**2 - small**2)
    except torch.OutOfMemoryError:
        return None
    return slope if slope > 0 else None


def cached(key: str, measure: Callable[[], float | None], file: Path | None = None) -> float | None:
    """The figure that the cache has for `key`, else a new one, which it then has if it can be written."""
    file = file or cache_file()
    known = _read(file)
    if key in known:
        return known[key]
    value = measure()
    if value is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, json.dumps({**known, key: value}).encode())
        except (OSError, ResourceError) as error:
            _log.info("the measured memory of this network is not kept: %s", error)
    return value


def cache_file() -> Path:
    """In $XDG_CACHE_HOME, by default ~/.cache (XDG Base Directory Specification: only where it is absolute)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser()
    return folder / "ray-sr" / "tile-memory.json"


def _read(file: Path) -> dict[str, float]:
    """What of the cache makes sense."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if _is_size(value)}


def _is_size(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


def _peak(network: nn.Module, capability: Capability, device: torch.device, side: int) -> int:
    side = -(-side // capability.multiple) * capability.multiple
    tile = torch.zeros(1, capability.channels, side, side, device=device)
    before = torch.cuda.memory_allocated(device)
    DEVICE.reset_peak(device)
    with torch.inference_mode():
        network(tile.contiguous(memory_format=torch.channels_last))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
