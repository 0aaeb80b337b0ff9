"""Upscales a clip on two nodes of a cluster made here; prints what came of it as JSON.

A program of its own, because a process belongs to one Ray cluster at a time.
    python -m tests.video.two_nodes CLIP OUT
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_sr.cluster import connect
from ray_sr.store import load_model
from ray_sr.upscaling.files import FileOptions
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.inputs import MovingJob
from ray_sr.video.on_ray import upscale_clips_on_ray


def main(source: str, target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        os.environ["RAY_TMPDIR"] = temporary
        (Path(temporary) / "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        results = upscale_clips_on_ray(
            [MovingJob(Path(source), Path(target))],
            load_model("bicubic", scale=2),
            wanted=TargetSize(),
            options=FileOptions(),
            choices={"codec": None, "crf": None, "resume": False},
            engine_options={"device": "cpu"},
            quiet=True,
        )
        result = next(results)
        nodes = sum(node["Alive"] for node in ray.nodes())
        print(
            json.dumps({"status": result.status, "reason": result.reason, "nodes": nodes, "frames": result.frames})
        )
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
