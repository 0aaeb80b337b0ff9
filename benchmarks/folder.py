"""A folder of photographs through `ray-sr upscale`: the whole beside each of its stages alone.

    python -m benchmarks.folder PHOTOS [--photos 50] [--rounds 3] [--json FILE]

Decoding, upscaling and encoding overlap, so the whole should take little longer than its slowest stage. The stages
are measured one after the other over all photographs, as the command runs them: results are PNG, written to disk.
Networks have made-up weights; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ray_sr.bench.machine import Bench, describe_machine, use_threads
from ray_sr.bench.upscale import synthetic_generator
from ray_sr.progress import Progress
from ray_sr.recipes.networks import CompactSpec, MSRResNetSpec, NetworkSpec
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.files import FileOptions, UpscaleWorker, upscale_files
from ray_sr.upscaling.naming import plan_jobs
from ray_sr.upscaling.target_size import TargetSize

NETWORKS = {
    "MSRResNet x4, direct": NetworkSpec(scale=4, generator=MSRResNetSpec(upsampling="direct")),
    "Compact x4": NetworkSpec(scale=4, generator=CompactSpec()),
}
STAGES = ("decoding", "upscaling", "encoding")


def contenders(engine: Engine, photos: list[str], output: Path) -> dict[str, Callable[[], object]]:
    """The three stages alone and the whole command. What a stage hands on is kept for the next one."""
    options = FileOptions(existing="overwrite")
    worker = UpscaleWorker(engine, TargetSize(None), options)
    jobs = plan_jobs(
        photos, output, format="png", suffix="_x4", existing="overwrite", recursive=False, compare=False
    )
    decoded: list[Any] = []
    made: list[Any] = []

    def decode() -> None:
        decoded[:] = [worker.read(job) for job in jobs]

    def upscale() -> None:
        made[:] = [worker.upscale(job, photo, lambda _: None) for job, photo in zip(jobs, decoded, strict=True)]

    def encode() -> None:
        for job, result in zip(jobs, made, strict=True):
            worker.write(job, result)

    def whole() -> None:
        made.clear()
        upscale_files(photos, output, engine, options=options, quiet=True)

    return {"decoding": decode, "upscaling": upscale, "encoding": encode, "whole": whole}


def measure(photos: list[str], bench: Bench) -> dict[str, dict[str, Any]]:
    """{network: {"seconds": {stage: median}, "over_slowest": median and quartiles of whole / slowest stage}}."""
    results: dict[str, dict[str, Any]] = {}
    with Progress("folder", len(NETWORKS) * (1 + bench.rounds), "rounds") as progress:
        for name, network in NETWORKS.items():
            generator = synthetic_generator(network)
            engine = Engine(generator, generator.capability, device=bench.device)
            with tempfile.TemporaryDirectory() as folder:
                times = bench.take_turns(contenders(engine, photos, Path(folder)), progress.advance)
            slowest = max(STAGES, key=times.median)
            results[name] = {
                "seconds": {stage: round(times.median(stage), 3) for stage in (*STAGES, "whole")},
                "slowest": slowest,
                "over_slowest": times.speedup(slowest, "whole"),
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="PHOTOS")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    use_threads(None)
    bench = Bench(torch.device("cpu"), options.rounds)
    print(describe_machine(bench.device), file=sys.stderr)
    photos = [str(path) for path in sorted(Path(options.folder).iterdir()) if path.is_file()][: options.photos]
    results = measure(photos, bench)
    for network, row in results.items():
        seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in row["seconds"].items())
        ratio = row["over_slowest"]
        spread = f"{ratio['lower']:.3f} to {ratio['upper']:.3f}"
        print(f"{network:22}{seconds}: {ratio['median']:.3f} ({spread}) of its slowest")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
