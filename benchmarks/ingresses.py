"""The endpoint with one, two and four ingress replicas before an engine that sleeps, beside a plain program.

    python -m benchmarks.ingresses PHOTO [--rounds 3] [--seconds 8] [--engine-ms 50] [--at-once 4] [--clients 16]

    plain      FastAPI and uvicorn around the same decoder, engine and encoder, in one process
    1, 2, 4    services of so many ingress replicas, with Serve's own proxy

The engine sleeps `--engine-ms` for each picture and takes `--at-once` of them side by side, as a GPU with batches
does; what it answers is made once. All that is left is the way of the bytes. Pictures of 256 px become PNG of 1024
px: the middle of PHOTO, and noise. Rates are of `--clients` that wait for their answers, with the photograph; the
time over the engine is the median latency of one client less the sleep. All run all the time and take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.endpoint import server
from benchmarks.services import Enlarged, free_port, loopback, sleeping_generator
from ray_sr.bench.http import Target, closed_loop
from ray_sr.images import Photo, decode, encode
from ray_sr.serving.app import assemble
from ray_sr.serving.options import ServiceOptions

SIZE = 256
INGRESSES = (1, 2, 4)
NICENESS = "RAY_worker_niceness"


def pictures(photo: Path) -> dict[str, bytes]:
    """The middle of a photograph, and noise, as PNG of 256 px."""
    pixels = decode(photo.read_bytes()).pixels
    top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
    middle = np.ascontiguousarray(pixels[top : top + SIZE, left : left + SIZE])
    noise = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return {"photograph": encode(Photo(middle), "png"), "noise": encode(Photo(noise), "png")}


def plain_program(seconds: float, at_once: int) -> FastAPI:
    """What one writes without Ray."""
    results, turn, api = Enlarged(), threading.Semaphore(at_once), FastAPI()

    def work(data: bytes) -> bytes:
        result = results.of(decode(data))
        with turn:
            time.sleep(seconds)
        return encode(result, "png")

    @api.post("/v1/upscale", response_class=Response)
    async def upscale(request: Request) -> Response:
        return Response(await run_in_threadpool(work, await request.body()), media_type="image/png")

    return api


def closed(url: str, picture: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Pictures a second, and median latency in ms."""
    found = asyncio.run(closed_loop(Target(url, [picture], timeout_s=120), clients, seconds))
    assert found.statuses.keys() == {"200"}, found
    return found.goodput, found.p50_ms


def contenders(stack: ExitStack, picture: bytes, engine_s: float, at_once: int) -> dict[str, str]:
    """URLs of the services, running."""
    port = free_port()
    plain = json.dumps({"engine_s": engine_s, "at_once": at_once, "port": port})
    command = [sys.executable, "-m", "benchmarks.ingresses", "--plain", plain]
    urls = {"plain": stack.enter_context(server(command, port, picture)).url}
    folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    run = stack.enter_context(loopback())
    for number in INGRESSES:
        options = ServiceOptions(
            jobs=f"{folder}/{number}", ingress_replicas=number, requests_per_replica=4 * at_once
        )
        urls[str(number)] = run(str(number), assemble(options, sleeping_generator(engine_s, at_once)))
    return urls


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For each round and contender: pictures a second, and ms over the engine for either picture."""
    given, seconds, clients = pictures(arguments.photo), arguments.seconds, arguments.clients
    rounds: list[dict[str, Any]] = []
    with ExitStack() as stack:
        urls = contenders(stack, given["noise"], arguments.engine_ms / 1000, arguments.at_once)
        for url in urls.values():  # every replica and codec process has had something to do
            for picture in given.values():
                closed(url, picture, clients, 2)
        for number in range(arguments.rounds):
            found: dict[str, Any] = {}
            for name, url in urls.items():
                rate, _ = closed(url, given["photograph"], clients, seconds)
                over = {kind: closed(url, picture, 1, seconds / 2)[1] for kind, picture in given.items()}
                found[name] = {"rate": rate, **{kind: p50 - arguments.engine_ms for kind, p50 in over.items()}}
            print(f"round {number + 1}: {json.dumps(found)}", file=sys.stderr, flush=True)
            rounds.append(found)
    return rounds


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, with the lowest and the highest; ratios within a round."""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    found: dict[str, Any] = {}
    for name in rounds[0]:
        found[name] = {
            "pictures/s": spread([one[name]["rate"] for one in rounds]),
            "over plain": spread([one[name]["rate"] / one["plain"]["rate"] for one in rounds]),
            "over one ingress": spread([one[name]["rate"] / one["1"]["rate"] for one in rounds]),
            **{
                f"p50 over the engine, {kind}, ms": spread([one[name][kind] for one in rounds])
                for kind in ("photograph", "noise")
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--engine-ms", type=float, default=50)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--plain", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        os.nice(int(os.environ.get(NICENESS, "15")))  # as Ray's workers: it counts where others use the machine
        program = plain_program(arguments.plain["engine_s"], arguments.plain["at_once"])
        uvicorn.run(program, host="127.0.0.1", port=arguments.plain["port"], log_level="warning")
        return
    if arguments.photo is None:
        parser.error("a photograph is needed")
    found = summary(measure(arguments))
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), **found}, indent=2))


if __name__ == "__main__":
    main()
