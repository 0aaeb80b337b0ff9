"""Upscaling x4 by the engine beside other ways to run the same network on the same cores.

    python -m benchmarks.engines [--rounds 5] [--json FILE]

    ours      `Engine` with its defaults, from uint8 pixels to uint8 pixels, tiles included
    plain     torch, eager, float32, contiguous
    inductor  torch.compile of the network in bfloat16, as the engine would run it, compiled for this size
    ONNX      ONNX Runtime on the network exported by `ray-sr models export`
    OpenCV    OpenCV's dnn module, on which its dnn_superres stands, on the same export

All but ours run one whole picture without tiles and get and give float32 tensors, so that they spare the work of
conversion. Needs onnx, onnxscript, onnxruntime and opencv-python-headless: `pip install ray-sr[onnx,bench]`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch

from ray_sr.bench.machine import Bench, describe_machine, use_threads
from ray_sr.bench.upscale import synthetic_generator
from ray_sr.models import Generator
from ray_sr.models.export import export_onnx
from ray_sr.progress import Progress
from ray_sr.recipes.networks import CompactSpec, MSRResNetSpec, NetworkSpec
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.precision import to_bfloat16, try_out

HEIGHT, WIDTH = 240, 320
NETWORKS = {
    "MSRResNet x4": NetworkSpec(scale=4, generator=MSRResNetSpec()),
    "MSRResNet x4, direct": NetworkSpec(scale=4, generator=MSRResNetSpec(upsampling="direct")),
    "Compact x4": NetworkSpec(scale=4, generator=CompactSpec()),
}
Contender = Callable[[], object]


def contenders(generator: Generator, folder: Path) -> dict[str, Contender]:
    """Everything that upscales the same made-up picture by `generator`."""
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255).contiguous()
    export_onnx(generator, folder / "generator.onnx")
    engine = Engine(generator, generator.capability, device=torch.device("cpu"))
    return {
        "ours": lambda: engine.run(picture, np.uint8),
        "plain": lambda: _infer(generator, tensor),
        "inductor": _inductor(copy.deepcopy(generator), tensor),
        "ONNX Runtime": _onnx_runtime(folder / "generator.onnx", tensor.numpy()),
        "OpenCV": _opencv(folder / "generator.onnx", tensor.numpy()),
    }


@torch.inference_mode()
def _infer(network: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    return network(tensor)


def _inductor(generator: Generator, tensor: torch.Tensor) -> Contender:
    channels_last = tensor.contiguous(memory_format=torch.channels_last)
    exact = generator.to(memory_format=torch.channels_last)
    fast = to_bfloat16(exact, try_out(exact, 3), exact.capability.residual)
    compiled = torch.compile(fast, dynamic=False)
    return lambda: _infer(compiled, channels_last)


def _onnx_runtime(file: Path, tensor: np.ndarray) -> Contender:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": tensor})


def _opencv(file: Path, tensor: np.ndarray) -> Contender:
    cv2.setNumThreads(torch.get_num_threads())
    network = cv2.dnn.readNetFromONNX(str(file))

    def run() -> object:
        network.setInput(tensor)
        return network.forward()

    return run


def measure(bench: Bench) -> dict[str, dict[str, Any]]:
    """{network: {contender: {"mpx_per_s" of output, "times_slower" than ours with quartiles}}}."""
    results: dict[str, dict[str, Any]] = {}
    megapixels = HEIGHT * WIDTH * 16 / 1e6
    with Progress("upscaling", len(NETWORKS) * (1 + bench.rounds), "rounds") as progress:
        for name, network in NETWORKS.items():
            with tempfile.TemporaryDirectory() as folder:
                turns = contenders(synthetic_generator(network), Path(folder))
                times = bench.take_turns(turns, progress.advance)
            results[name] = {
                contender: {
                    "mpx_per_s": round(megapixels / times.median(contender), 3),
                    "times_slower": times.speedup("ours", contender),
                }
                for contender in turns
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    use_threads(None)
    bench = Bench(torch.device("cpu"), options.rounds)
    print(describe_machine(bench.device), file=sys.stderr)
    results = measure(bench)
    for network, rows in results.items():
        for contender, row in rows.items():
            slower = row["times_slower"]
            print(
                f"{network:22}{contender:14}{row['mpx_per_s']:8.3f} Mpx/s   "
                f"ours {slower['median']:.2f} times as fast ({slower['lower']:.2f} to {slower['upper']:.2f})"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
