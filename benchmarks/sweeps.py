"""What a sweep costs beyond its trials: `ray-sr tune` beside the same trials by `ray-sr train`, one after another.

    python -m benchmarks.sweeps SHARDS [--recipe demo] [--trials 3] [--concurrent N] [--rounds 1] [--json FILE]
                                [KEY=VALUE …]

Both are whole commands, from the start of Ray to its end; the trials differ in their seed alone, so that their
work is the same. A sweep starts Ray once, and ranks, draws and writes its results in the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ray_sr.bench.machine import Bench, describe_machine


def run(arguments: list[str]) -> None:
    """One `ray-sr` command; its own words on the terminal only if it fails."""
    done = subprocess.run([sys.executable, "-m", "ray_sr.cli", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ray-sr {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """{"by_hand_s", "sweep_s": medians, "sweep_over_by_hand": median and quartiles}."""
    common = ["-c", options.recipe, "--data", options.shards]
    seeds = range(1, options.trials + 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        space = folder / "space.yaml"
        space.write_text(f"fields: {{seed: {{grid: {list(seeds)}}}}}\nsearcher: grid\nscheduler: none\n")
        count = iter(range(1_000_000))

        def by_hand() -> None:
            for seed in seeds:
                run(["train", *common, "-o", str(folder / f"run{next(count)}"), *options.overrides, f"seed={seed}"])

        def sweep() -> None:
            concurrent = ["--concurrent", str(options.concurrent)] if options.concurrent else []
            output = ["-s", str(space), "-o", str(folder / f"sweep{next(count)}"), *concurrent]
            run(["tune", *common, *output, *options.overrides])

        times = Bench(torch.device("cpu"), options.rounds, warm_up=0).take_turns({"hand": by_hand, "sweep": sweep})
    return {
        "trials": options.trials,
        "by_hand_s": times.median("hand"),
        "sweep_s": times.median("sweep"),
        "sweep_over_by_hand": times.speedup("hand", "sweep"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_intermixed_args()
    print(describe_machine(torch.device("cpu")), file=sys.stderr)
    result = measure(options)
    ratio = result["sweep_over_by_hand"]
    print(f"{options.trials} trials: by hand {result['by_hand_s']:.0f} s, sweep {result['sweep_s']:.0f} s: {ratio}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
