"""The endpoint beside the bare engine and beside a plain FastAPI program around the same generator.

    python -m benchmarks.endpoint [--rounds 3] [--seconds 10] [--size 256] [--threads 1] [--haproxy] [--json FILE]

    engine     pictures/s of the engine alone, pixels to pixels, in this process
    plain      benchmarks/plain_endpoint.py
    ray-sr     `ray-sr serve`, one replica, Serve's own proxy
    haproxy    the same behind HAProxy (RAY_SERVE_ENABLE_HA_PROXY=1), which listens on all interfaces

All have as many threads for the network. Each is measured with 1 and with 8 clients that wait
for their answers; contenders take turns, round by round; ratios are medians of the ratios within a round. Weights
and pictures are made up. Every server runs all the time, so what one costs at rest is borne by all.

Beside the wall clock, the processor time of each server and all its children is told for each picture, less what
they take at rest: other work on the machine hardly touches it, but it tells nothing of waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.services import free_port
from ray_sr import client
from ray_sr.bench.http import Target, closed_loop, photos
from ray_sr.errors import ClusterError
from ray_sr.images import decode
from ray_sr.models import build_generator
from ray_sr.recipes.networks import MSRResNetSpec, NetworkSpec
from ray_sr.store import Store, load_model
from ray_sr.upscaling import Engine, upscale_photo

CLIENTS = (1, 8)
PATIENCE_S = 240


@dataclass(frozen=True)
class Server:
    """A server that runs, and the processor seconds a second that it takes at rest."""

    url: str
    pid: int
    at_rest: float = 0.0

    def cpu_s(self) -> float:
        """Processor seconds so far, of the server and all its children, those that ended included."""
        return sum(processes.cpu_s(pid) for pid in processes.tree(self.pid))

    def resting(self, seconds: float) -> Server:
        """The same, with what it takes at rest."""
        before, begin = self.cpu_s(), time.perf_counter()
        time.sleep(seconds)
        return replace(self, at_rest=(self.cpu_s() - before) / (time.perf_counter() - begin))


@contextmanager
def server(command: list[str], port: int, picture: bytes, **environment: str) -> Iterator[Server]:
    """A server that answers; it is interrupted at the end of the block."""
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                client.upscale(url, picture)
                break
            except ClusterError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield Server(url, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def engine_alone(engine: Engine, picture: bytes, seconds: float) -> dict[str, float]:
    """Pictures/s and processor seconds a picture, decoded before and not encoded."""
    photo = decode(picture)
    begin, cpu_s, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < begin + seconds:
        upscale_photo(photo, engine)
        done += 1
    cpu_s, wall = time.process_time() - cpu_s, time.perf_counter() - begin
    return {"rate": done / wall, "cpu_s": round(cpu_s / done, 4)}


def servers(stack: ExitStack, store: str, picture: bytes, threads: int, haproxy: bool) -> dict[str, Server]:
    """The contenders that speak HTTP, running."""
    ports = {name: free_port() for name in ("plain", "ray-sr", "haproxy")}
    plain = [sys.executable, "-m", "benchmarks.plain_endpoint", "bench", store, str(ports["plain"]), str(threads)]
    found = {"plain": stack.enter_context(server(plain, ports["plain"], picture))}
    for name in ("ray-sr", *(["haproxy"] if haproxy else [])):
        ours = [sys.executable, "-m", "ray_sr.cli", "serve", "-n", "bench"]
        ours += ["--store", store, "--port", str(ports[name])]
        environment = {"RAY_SERVE_ENABLE_HA_PROXY": "1"} if name == "haproxy" else {}
        found[name] = stack.enter_context(server(ours, ports[name], picture, **environment))
    return {name: one.resting(10) for name, one in found.items()}


def measured(one: Server, picture: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Rate, latency, and processor seconds a picture."""
    cpu_s, begin = one.cpu_s(), time.perf_counter()
    found = asyncio.run(closed_loop(Target(one.url, [picture], timeout_s=600), clients, seconds))
    assert found.statuses.keys() == {"200"}, found
    spent = one.cpu_s() - cpu_s - one.at_rest * (time.perf_counter() - begin)
    return {"rate": found.goodput, "p50_ms": found.p50_ms, "cpu_s": round(spent / found.statuses["200"], 4)}


def measure(arguments: argparse.Namespace, store: str) -> dict[str, Any]:
    """Rates and latencies of all contenders, one list entry a round."""
    (picture,) = photos([arguments.size])
    torch.set_num_threads(arguments.threads)
    model = load_model("bench", store)
    engine = Engine(model.module, model.capability, device="cpu")
    rounds: list[dict[str, Any]] = []
    with ExitStack() as stack:
        running = servers(stack, store, picture, arguments.threads, arguments.haproxy)
        for number in range(arguments.rounds):
            found: dict[str, Any] = {"engine": engine_alone(engine, picture, arguments.seconds)}
            for clients in CLIENTS:
                for name, one in running.items():
                    found[f"{name} {clients}"] = measured(one, picture, clients, arguments.seconds)
            print(f"round {number + 1}: {json.dumps(found)}", file=sys.stderr, flush=True)
            rounds.append(found)
    return {"rounds": rounds, **summary(rounds, [name for name in running if name != "plain"])}


def summary(rounds: list[dict[str, Any]], ours: list[str]) -> dict[str, Any]:
    """Medians over the rounds."""

    def median(of: Any) -> float:
        return round(statistics.median(of(one) for one in rounds), 3)

    rates = {name: median(lambda one, name=name: one[name]["rate"]) for name in rounds[0]}
    cpu_s = {name: median(lambda one, name=name: one[name]["cpu_s"]) for name in rounds[0]}
    result: dict[str, Any] = {"pictures_per_s": rates, "cpu_s_per_picture": cpu_s}
    for name in ours:
        result[name] = {
            "over engine, 8 clients": median(lambda one, n=name: one[f"{n} 8"]["rate"] / one["engine"]["rate"]),
            "over plain, 1 client": median(lambda one, n=name: one[f"{n} 1"]["rate"] / one["plain 1"]["rate"]),
            "over plain, 8 clients": median(lambda one, n=name: one[f"{n} 8"]["rate"] / one["plain 8"]["rate"]),
            "p50 over engine, ms": median(
                lambda one, n=name: one[f"{n} 1"]["p50_ms"] - 1000 / one["engine"]["rate"]
            ),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=16, help="of MSRResNet x4")
    parser.add_argument("--haproxy", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network = NetworkSpec(scale=4, generator=MSRResNetSpec(blocks=arguments.blocks))
        Store(folder).publish("bench", build_generator(network), network)
        result = measure(arguments, folder)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
