"""Trains on two nodes of a cluster made here and removes one in the middle; prints what came of it as JSON.

A program of its own, because a process belongs to one Ray cluster at a time.
    python -m tests.training.lose_a_node SHARDS RUN [WORKERS_THAT_SUFFICE]
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
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training.launch import train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run

RECIPE = """
name: nodes
scale: 2
data: {crop: 32, batch: 8, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 60, losses: [{kind: l1}]}
validation: {photos: 1, every: 60}
training: {workers: 2, placement: spread, log_every: 5, checkpoint_every: 10, max_failures: 2, precision: fp32}
"""


def main(shards: str, folder: str, fewest: int = 2) -> None:
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        os.environ["RAY_TMPDIR"] = temporary
        (Path(temporary) / "ray").mkdir()
        # Both workers find room on one node, or only one does; a CPU is left to make crops in either case.
        cpus, each = (3, 1) if fewest == 2 else (3, 2)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus})
        second = cluster.add_node(num_cpus=cpus)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        lost: list[int] = []

        def lose_once(record: Record) -> None:
            if record["event"] == "train" and record["step"] >= 20 and not lost:
                lost.append(record["step"])
                cluster.remove_node(second, allow_graceful=False)

        run = Run.at(folder)
        recipe = parse_recipe(RECIPE, [f"training.min_workers={fewest}", f"training.cpus_per_worker={each}"])
        ended = train(recipe, run, shards=shards, listen=lose_once)
        starts = [(record["step"], record["world"]) for record in run.records("start")]
        steps = [record["step"] for record in run.records("train")]
        print(json.dumps({"lost_at": lost, "ended_at": ended.step, "starts": starts, "steps": steps}))
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
