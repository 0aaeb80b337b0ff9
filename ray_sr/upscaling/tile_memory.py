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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ray_sr.errors import ResourceError
from ray_sr.images import write_bytes
from ray_sr.models import Capability

MEASURED_SIDES = (128, 256)  # the difference between the two leaves out what does not grow with a tile

_log = logging.getLogger(__name__)


def measured_bytes_per_pixel(
    network: nn.Module, capability: Capability, device: torch.device, precision: str
) -> float | None:
    """Bytes at the peak of a run for each input pixel; None where it cannot be measured."""
    if device.type != "cuda":
        return None
    kind = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {precision}"
    key = hashlib.sha256(f"{kind}, {capability}, {network!r}".encode()).hexdigest()
    return cached(key, lambda: growth(lambda side: _peak(network, capability, device, side)))


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
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        network(tile.contiguous(memory_format=torch.channels_last))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
