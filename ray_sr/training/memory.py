"""When a step does not fit into a GPU's memory: how many crops at once would, and what to set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ray_sr.errors import ResourceError
from ray_sr.training.steps import MicroBatch

Fits = Callable[[list[MicroBatch]], bool]


def smaller_sizes(crops: int, multiple: int) -> list[int]:
    """Crops at once that divide `crops` and are whole sub-images of `multiple` crops, the largest first."""
    return [size for size in range(crops // 2, 0, -1) if crops % size == 0 and size % multiple == 0]


def size_that_fits(parts: Sequence[MicroBatch], multiple: int, fits: Fits) -> int | None:
    """How many crops of a part fit where all of them did not: tried out. None where no smaller number does."""
    part = parts[0]
    for size in smaller_sizes(len(part.lr), multiple):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fewer = MicroBatch(part.lr[:size], part.hr[:size], part.seed, part.share)
        if fits([fewer, fewer]):
            return size
    return None


def does_not_fit(step: int, crops: int, remedy: str, device: torch.device) -> ResourceError:
    """What to tell, in one line."""
    where = str(device)
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} ({torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB)"
    return ResourceError(f"step {step}: {crops} crops at once do not fit into the memory of {where}: {remedy}")
