"""What a benchmark ran on, and fair measuring: contenders take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ray_sr.errors import ResourceError
from ray_sr.upscaling.precision import has_fast_bfloat16

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Bench:
    """How to measure: on which device, how many rounds after `warm_up` ones that do not count, by which clock.

    `cpu` counts the processor time of this process. With one thread that is a fair measure on a machine that
    does other work as well; several threads also count what they spend waiting for each other.
    """

    device: torch.device
    rounds: int
    clock: Clock = "wall"
    warm_up: int = 1

    def take_turns(
        self, contenders: Mapping[str, Callable[[], object]], done: Callable[[], None] = lambda: None
    ) -> Times:
        """Runs every contender once a round, one after the other; `done` is called after each round."""
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(self.warm_up + self.rounds):
            for name, run in contenders.items():
                spent = self._seconds(run)
                if number >= self.warm_up:
                    seconds[name].append(spent)
            done()
        return Times(seconds)

    def _seconds(self, run: Callable[[], object]) -> float:
        read = time.perf_counter if self.clock == "wall" else time.process_time
        self._wait()
        began = read()
        run()
        self._wait()
        return read() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Times:
    """Seconds of every contender in every round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, ours: str, theirs: str) -> dict[str, float]:
        """Median and quartiles of theirs / ours, round by round: above 1, ours is faster."""
        pairs = zip(self.seconds[ours], self.seconds[theirs], strict=True)
        ratios = [their / our for our, their in pairs]
        several = ratios if len(ratios) > 1 else ratios * 2
        lower, median, upper = statistics.quantiles(several, n=4, method="inclusive")
        return {"median": round(median, 3), "lower": round(lower, 3), "upper": round(upper, 3)}


def bench_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one. Raises ResourceError for a device that is absent."""
    found = torch.cuda.is_available()
    device = torch.device(("cuda" if found else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not found:
        raise ResourceError("device cuda: torch finds no GPU; use --device cpu")
    return device


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads: by default one for each CPU that this process may run on."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def describe_machine(device: torch.device) -> str:
    """One line: processor, CPUs and threads, GPU, version of torch, whether bfloat16 is multiplied in hardware."""
    cpus, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    parts = [f"{_processor()}, {cpus} CPUs, {threads} threads"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    bf16 = "bf16 in hardware" if has_fast_bfloat16(device) else "no bf16 in hardware"
    return ", ".join([*parts, f"torch {torch.__version__}", bf16])


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
