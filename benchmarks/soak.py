"""Whether a process of the endpoint keeps what it was sent: its memory over many requests.

    python -m benchmarks.soak [--requests 10000] [--clients 8] [--size 96] [--ingresses 2]

Starts what `ray-sr serve -n bicubic` starts, with so many ingress replicas; sends it noise as PNG, beside that jobs
one after another; and notes each process's own memory (RssAnon: without what it shares, as Ray's object store) as
requests go by. The slope is that of a straight line through the second half of the requests, in bytes a request;
what stays of every picture would show as the size of its PNG (told as `body`) or of its pixels. Codec processes are
replaced now and then and told together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np

from benchmarks import processes
from ray_sr.bench.http import Target, closed_loop
from ray_sr.images import Photo, encode
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import running_service

SLICE_S = 5.0


def own_memory() -> dict[str, int]:
    """Bytes of each process of the service that are its own, by its name and process id; of all codecs together."""
    found: dict[str, int] = defaultdict(int)
    for pid in processes.tree(os.getpid())[1:]:
        with suppress(OSError):
            name = processes.name_of(pid)
            found[name if name == "codecs" else f"{name} {pid}"] += processes.own_bytes(pid)
    return found


async def load(url: str, picture: bytes, clients: int, seconds: float) -> tuple[Counter[str], int]:
    """The statuses of the requests of so many seconds, and how many jobs were done beside them."""
    jobs = asyncio.create_task(_jobs(url, picture, time.monotonic() + seconds))
    found = await closed_loop(Target(url, [picture]), clients, seconds)
    return Counter(found.statuses), await jobs


async def _jobs(url: str, picture: bytes, end: float) -> int:
    """One job after another, each followed by its events and fetched."""
    done = 0
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            async with session.post(f"{url}/v1/jobs", data=picture) as begun:
                address = f"{url}/v1/jobs/{(await begun.json())['id']}"
            async with session.get(f"{address}/events") as events:
                await events.read()
            async with session.get(f"{address}/result") as result:
                assert result.status == 200, await result.text()
                await result.read()
            done += 1
    return done


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was sent, and what it left in each process."""
    noise = np.random.default_rng(1).integers(0, 256, (arguments.size, arguments.size, 3), np.uint8)
    picture = encode(Photo(noise), "png")
    options = ServiceOptions(model="bicubic", device="cpu", ingress_replicas=arguments.ingresses)
    course: list[tuple[int, dict[str, int]]] = []
    statuses: Counter[str] = Counter()
    jobs, begin = 0, time.monotonic()
    with running_service(options) as url:
        while sum(statuses.values()) < arguments.requests:
            answers, done = asyncio.run(load(url, picture, arguments.clients, SLICE_S))
            statuses += answers
            jobs += done
            course.append((sum(statuses.values()), own_memory()))
            print(f"{course[-1][0]} requests, {jobs} jobs", file=sys.stderr, flush=True)
    return {
        "requests": dict(statuses),
        "jobs": jobs,
        "seconds": round(time.monotonic() - begin),
        "body": len(picture),
        "pixels": {"in": noise.nbytes, "out": 16 * noise.nbytes},
        "processes": slopes(course),
    }


def slopes(course: list[tuple[int, dict[str, int]]]) -> dict[str, dict[str, float]]:
    """For each process that was there in all of the second half: its memory at both ends in MiB, and the slope."""
    half = [(requests, memory) for requests, memory in course if requests >= course[-1][0] / 2]
    requests = [number for number, _ in half]
    found = {}
    for name in sorted(set.intersection(*(set(memory) for _, memory in half))):
        taken = [memory[name] for _, memory in half]
        slope = float(np.polyfit(requests, taken, 1)[0])
        found[name] = {
            "MiB at half": round(taken[0] / 2**20, 1),
            "MiB at the end": round(taken[-1] / 2**20, 1),
            "bytes a request": round(slope),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--ingresses", type=int, default=2)
    print(json.dumps(soak(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
