"""Training as Ray Train runs it, beside a bare loop; two workers beside one; bfloat16 beside float32.

    python -m benchmarks.training PHOTOS [--rounds 3] [--steps 60] [--psnr-steps 600] [--json FILE]

    overhead   steps/s of `ray-sr train` (data plane, DDP set-up, log lines included) on one worker with one thread,
               over those of the same step in a loop on batches that lie ready, on one thread
    workers    photos/s of two workers with one thread each, over those of one worker with two threads
    bf16       validation PSNR-Y after equal steps, bfloat16 autocast less float32 (--psnr-steps 0: left out)

Contenders take turns, round by round; ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ray_sr.bench.step import OurLoop, synthetic_photos
from ray_sr.cluster import disconnect, local_ray
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.launch import train
from ray_sr.training.runs import Run

RECIPE = """
name: bench
seed: 1
data: {crop: 96, batch: 8, crops_per_image: 4}
generator: {kind: msrresnet, blocks: 8}
pretrain: {steps: 60, losses: [{kind: l1}], optimizer: {lr: 5e-4}}
validation: {photos: 0}
training: {log_every: 5, checkpoint_every: 1000000, keep_best: 0, ema: 0.95}
"""
WARM_UP = 3  # log lines


def recipe_of(steps: int, **training: Any) -> Recipe:
    return parse_recipe(
        RECIPE, [f"pretrain.steps={steps}", *(f"training.{name}={value}" for name, value in training.items())]
    )


def bare_rate(steps: int, threads: int) -> float:
    """Steps/s of the library's own step on batches that lie ready, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_bare_loop, steps, threads).result()


def _bare_loop(steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    recipe = recipe_of(steps)
    loop = OurLoop(recipe, torch.device("cpu"))
    layout = loop.compute.memory_format
    lr, hr = (photos.to(memory_format=layout) for photos in synthetic_photos(recipe))
    for _ in range(10):
        loop.run(lr, hr)
    began = time.perf_counter()
    for _ in range(steps):
        loop.run(lr, hr)
    return steps / (time.perf_counter() - began)


def trained_rate(shards: str, steps: int, **training: Any) -> dict[str, float]:
    """Steps/s and data wait of `ray-sr train`, after its first log lines."""
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as folder:
        run = Run.at(Path(folder) / "run")
        train(recipe_of(steps, **training), run, shards=shards)
        records = run.records("train")[WARM_UP:]
    seconds = sum(5 / record["steps_per_s"] for record in records)
    wait = statistics.mean(record["data_wait"] for record in records)
    return {"steps_per_s": 5 * len(records) / seconds, "data_wait": wait}


def take_turns(shards: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    measured = []
    for _ in range(rounds):
        bare = bare_rate(steps, 1)
        one = trained_rate(shards, steps, cpus_per_worker=1)
        wide = trained_rate(shards, steps, cpus_per_worker=1, threads=2)
        two = trained_rate(shards, steps, cpus_per_worker=1, workers=2)
        measured.append(
            {"bare, 1 thread": bare, "1 worker, 1 thread": one, "1 worker, 2 threads": wide, "2 workers": two}
        )
        print(json.dumps(measured[-1]), flush=True)
    return measured


def psnr_after(shards: str, steps: int, precision: str) -> float:
    recipe = recipe_of(steps, precision=precision, threads=2)
    validation = recipe.validation.model_copy(update={"photos": 8, "every": steps})
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as folder:
        run = Run.at(Path(folder) / "run")
        return train(recipe.model_copy(update={"validation": validation}), run, shards=shards).metrics["psnr_y"]


def summary(measured: list[dict[str, Any]], psnr: dict[str, float]) -> dict[str, float]:
    def rate(one: dict[str, Any], name: str) -> float:
        return float(one[name]["steps_per_s"])

    found = {
        "overhead": 1
        - statistics.median(rate(one, "1 worker, 1 thread") / one["bare, 1 thread"] for one in measured),
        "data wait": statistics.median(one["1 worker, 1 thread"]["data_wait"] for one in measured),
        "2 workers over 1": statistics.median(
            rate(one, "2 workers") / rate(one, "1 worker, 2 threads") for one in measured
        ),
    }
    return found | ({"PSNR-Y of bf16 less fp32, dB": psnr["bf16"] - psnr["fp32"]} if psnr else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--psnr-steps", type=int, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    local_ray(cpus=4)
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as folder:
        shards = f"{folder}/shards"
        prepare(find_photos(options.photos), shards, cutting=Cutting(minimum=192))
        measured = take_turns(shards, options.rounds, options.steps)
        precisions = ("bf16", "fp32") if options.psnr_steps else ()
        psnr = {precision: psnr_after(shards, options.psnr_steps, precision) for precision in precisions}
    disconnect()
    result = summary(measured, psnr)
    for name, value in result.items():
        print(f"{name:32} {value:8.3f}")
    if options.json:
        options.json.write_text(json.dumps({"rounds": measured, "psnr_y": psnr, **result}, indent=1))


if __name__ == "__main__":
    main()
