"""What a benchmark ran on, and fair measuring: contenders take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ray_sr.upscaling.precision import has_fast_bfloat16

Times = dict[str, list[float]]


def use_all_cpus() -> int:
    """Let torch use every CPU this process may run on; their number."""
    cpus = len(os.sched_getaffinity(0))
    torch.set_num_threads(cpus)
    return cpus


def describe_machine(device: torch.device) -> str:
    """One line: processor, CPUs and threads, GPU, torch's version, and whether bfloat16 is multiplied in hardware."""
    parts = [f"{_processor()}, {len(os.sched_getaffinity(0))} CPUs, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    bf16 = "in hardware" if has_fast_bfloat16(device) else "not in hardware"
    return ", ".join([*parts, f"torch {torch.__version__}", f"bf16 {bf16}"])


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    done: Callable[[], None] = lambda: None,
    warm_up: int = 1,
) -> Times:
    """Seconds of each contender in each of `rounds`, after `warm_up` rounds that do not count.

    A round runs every contender once, one after the other. `done` is called after each round, warm-up included.
    """
    times: Times = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, run in contenders.items():
            seconds = _seconds(run, device)
            if number >= warm_up:
                times[name].append(seconds)
        done()
    return times


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def speedups(times: Times, ours: str, theirs: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of theirs / ours, round by round: above 1, ours is faster."""
    ratios = sorted(their / our for our, their in zip(times[ours], times[theirs], strict=True))
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high
