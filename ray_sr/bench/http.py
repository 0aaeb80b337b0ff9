"""Load on an endpoint: open-loop Poisson arrivals, the highest rate within a bound on latency, and overload.

A closed loop of clients that wait for each answer slows down with the service and so hides its stalls. Here
requests are sent when they are due, whatever became of those before, and a request's latency counts from then
(Tene, How NOT to Measure Latency, 2013).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np

from ray_sr.errors import ClusterError
from ray_sr.images import Photo, encode

_TOLERATED = 0.01  # share of requests that may fail at a rate that counts as borne
_BISECTIONS = 5
_NO_ANSWER = 0
_OVERLOAD = 6  # times as long as the other loads, so that the queues of the service fill


@dataclass(frozen=True)
class Target:
    """Where pictures are sent, in turn, and how."""

    url: str
    pictures: Sequence[bytes]
    key: str | None = None
    timeout_s: float = 60


@dataclass(frozen=True)
class Outcome:
    """One request: seconds from when it was due until its answer was there, and the status (0: no answer)."""

    seconds: float
    status: int


@dataclass(frozen=True)
class Measured:
    """What became of one load. Latencies are those of good answers; rates are in requests a second."""

    offered: float
    goodput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    statuses: dict[str, int]

    def __str__(self) -> str:
        counts = ", ".join(f"{number} x {status}" for status, number in sorted(self.statuses.items()))
        refused = ""
        if self.refusal_p50_ms is not None:
            refused = f", refusals p50 {self.refusal_p50_ms:.0f}, p99 {self.refusal_p99_ms:.0f} ms"
        latency = f"p50 {self.p50_ms:.0f}, p95 {self.p95_ms:.0f}, p99 {self.p99_ms:.0f} ms"
        return f"{self.offered:.2f}/s offered, {self.goodput:.2f}/s good, {latency}{refused} ({counts})"

    def bears(self, bound_ms: float) -> bool:
        """Whether latency stayed below the bound and nearly all answers were good."""
        total = sum(self.statuses.values())
        return self.p99_ms <= bound_ms and self.statuses.get("200", 0) >= (1 - _TOLERATED) * total


def photos(sizes: Sequence[int], seed: int = 1) -> list[bytes]:
    """Square pictures with slopes and grain, as PNG and JPEG by turns."""
    values = np.random.default_rng(seed)
    found = []
    for number, size in enumerate(sizes):
        slope = np.linspace(0, 160, size)[:, None, None] * np.linspace(0.4, 1, size)[None, :, None]
        pixels = slope + values.uniform(0, 60, (size, size, 3))
        found.append(encode(Photo(pixels.astype(np.uint8)), "png" if number % 2 == 0 else "jpeg"))
    return found


async def offer(target: Target, rate: float, seconds: float, seed: int = 1) -> Measured:
    """Poisson arrivals of this rate for so long. Raises ClusterError where nobody answers at all."""
    arrivals = random.Random(seed)
    async with _session(target) as session:
        begin = time.perf_counter()
        due = begin
        tasks: list[asyncio.Task[Outcome]] = []
        while (due := due + arrivals.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(_send(session, target, len(tasks), due)))
        outcomes = await asyncio.gather(*tasks)
        return _measured(target, outcomes, max(time.perf_counter() - begin, seconds), seconds)


async def closed_loop(target: Target, clients: int, seconds: float) -> Measured:
    """So many clients, each of which sends the next picture when it has the answer to the last."""
    async with _session(target) as session:
        begin = time.perf_counter()
        outcomes: list[Outcome] = []

        async def client(number: int) -> None:
            while (now := time.perf_counter()) < begin + seconds:
                outcomes.append(await _send(session, target, number, now))
                number += 1

        await asyncio.gather(*(client(number) for number in range(clients)))
        spent = time.perf_counter() - begin
        return _measured(target, outcomes, spent, spent)


async def highest_rate(
    measure: Callable[[float], Awaitable[Measured]], bound_ms: float, start: float = 1.0
) -> tuple[float, list[Measured]]:
    """The highest rate that is borne, 0 where none is, and all that was measured on the way.

    The rate is doubled until it is too high, then bisected.
    """
    course: list[Measured] = []

    async def borne(rate: float) -> bool:
        course.append(await measure(rate))
        return course[-1].bears(bound_ms)

    low, high = 0.0, start
    while await borne(high):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if await borne(middle) else (low, middle)
    return low, course


@dataclass(frozen=True)
class Result:
    """The highest rate within the bound (None: only one rate was offered), and twice of it where asked for."""

    bound_ms: float
    highest: float | None
    course: Sequence[Measured]
    overload: Measured | None = None

    @property
    def capacity(self) -> float:
        """The most good answers a second."""
        return max(measured.goodput for measured in self.course)

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        found: dict[str, object] = {
            "p99_bound_ms": self.bound_ms,
            "highest_rate": self.highest,
            "capacity": self.capacity,
            "loads": [asdict(measured) for measured in self.course],
        }
        if self.overload:
            share = self.overload.goodput / max(self.capacity, 1e-9)
            found["overload"] = {**asdict(self.overload), "goodput_share": round(share, 3)}
        return found

    def __str__(self) -> str:
        lines = [str(measured) for measured in self.course]
        if self.highest is not None:
            lines.append(f"highest rate with p99 within {self.bound_ms:g} ms: {self.highest:.2f}/s")
        if self.overload:
            share = self.overload.goodput / max(self.capacity, 1e-9)
            lines.append(f"overload: {self.overload}; {share:.0%} of the capacity of {self.capacity:.2f}/s is kept")
        return "\n".join(lines)


async def bench(
    target: Target, bound_ms: float, seconds: float, rate: float | None, overload: bool, note: Callable[[str], None]
) -> Result:
    """The loads that `ray-sr bench http` offers; `note` hears of each. Raises ClusterError."""

    async def measure(rate: float, times_as_long: int = 1) -> Measured:
        measured = await offer(target, rate, times_as_long * seconds)
        note(str(measured))
        return measured

    await offer(target, 2.0, 2.0)  # warms connections and replicas up
    if rate is not None:
        return Result(bound_ms, None, [await measure(rate)])
    highest, course = await highest_rate(measure, bound_ms)
    capacity = max(measured.goodput for measured in course)
    beyond = await measure(2 * capacity, _OVERLOAD) if overload else None
    return Result(bound_ms, highest, course, beyond)


def plot(path: Path, course: Sequence[Measured], bound_ms: float) -> None:
    """Latency over offered rate, as a PNG or SVG by the name's suffix."""
    from matplotlib.figure import Figure

    points = sorted(course, key=lambda one: one.offered)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        latencies = [getattr(one, name) for one in points]
        axes.plot([one.offered for one in points], latencies, marker="o", label=name.removesuffix("_ms"))
    axes.axhline(bound_ms, color="gray", linestyle="--", label="bound on p99")
    axes.set(xlabel="offered requests/s (Poisson)", ylabel="latency in ms, from when the request was due")
    axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _session(target: Target) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        headers={**headers, "Content-Type": "application/octet-stream"},
    )


async def _send(session: aiohttp.ClientSession, target: Target, number: int, due: float) -> Outcome:
    picture = target.pictures[number % len(target.pictures)]
    try:
        async with session.post(f"{target.url}/v1/upscale", data=picture) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError):
        status = _NO_ANSWER
    return Outcome(time.perf_counter() - due, status)


def _measured(target: Target, outcomes: Sequence[Outcome], spent: float, offered_s: float) -> Measured:
    statuses = Counter(str(outcome.status) for outcome in outcomes)
    if outcomes and statuses.keys() == {str(_NO_ANSWER)}:
        raise ClusterError(f"{target.url}: no answer from the service; is it running?")
    good = [1000 * outcome.seconds for outcome in outcomes if outcome.status == 200]
    refused = [1000 * outcome.seconds for outcome in outcomes if outcome.status in (429, 503)]
    p50, p95, p99 = (round(float(np.quantile(good, q)), 2) if good else float("inf") for q in (0.5, 0.95, 0.99))
    return Measured(
        offered=round(len(outcomes) / offered_s, 3),
        goodput=round(len(good) / spent, 3),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        refusal_p50_ms=round(float(np.quantile(refused, 0.5)), 2) if refused else None,
        refusal_p99_ms=round(float(np.quantile(refused, 0.99)), 2) if refused else None,
        statuses=dict(statuses),
    )
