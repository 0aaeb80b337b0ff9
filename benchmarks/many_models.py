"""What one more model costs: in a replica that holds others, and as a replica of its own.

    python -m benchmarks.many_models

A replica of its own, as a deployment for each model has when it is scaled up from zero, is a process: it imports
PyTorch, Ray and ray-sr. A replica that holds many (`ray-sr serve` without -n) only loads the weights. Told in
seconds of processor time and in memory that is the process's own, for the models that come with ray-sr, after a
picture of 32 px each. Starting a process through Ray and Serve takes more than that.
"""

from __future__ import annotations

import importlib
import json
import os
import time

import torch

from benchmarks.processes import own_bytes
from ray_sr.bench.http import photos
from ray_sr.images import decode
from ray_sr.store import Store, load_model
from ray_sr.store.store import SHIPPED
from ray_sr.upscaling import Engine, upscale_photo


def main() -> None:
    importlib.import_module("ray_sr.serving.replica")  # with all that it imports
    process = {"processor s": round(time.process_time(), 2), "MiB": _own_mib()}
    torch.set_num_threads(1)
    photo = decode(photos([32])[0])
    models: dict[str, dict[str, float]] = {}
    kept: list[Engine] = []
    for record in Store(SHIPPED).list():
        begin, before = time.process_time(), _own_mib()
        model = load_model(record.name, SHIPPED)
        kept.append(Engine(model.module, model.capability, device="cpu"))
        seconds = time.process_time() - begin
        upscale_photo(photo, kept[-1])
        models[record.name] = {"processor s": round(seconds, 3), "MiB": round(_own_mib() - before, 1)}
    print(json.dumps({"a process": process, "one more model": models}, indent=2))


def _own_mib() -> float:
    return round(own_bytes(os.getpid()) / 2**20, 1)


if __name__ == "__main__":
    main()
