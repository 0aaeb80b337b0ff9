"""Trains on two nodes of a cluster made here, gives notice of one, and prints what came of it as JSON.

A program of its own, because a process belongs to one Ray cluster at a time.
    python -m tests.cluster.drain_a_node FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_sr.cluster import connect
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from tests.cluster.ray_head import RAY
from tests.photos import write_real_photos

RECIPE = """
name: notice
scale: 2
data: {crop: 32, batch: 4, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 1000000, losses: [{kind: l1}]}
validation: {photos: 0}
training:
  {workers: 2, placement: spread, log_every: 5, checkpoint_every: 500000, cpus_per_worker: 1, max_failures: 0}
"""
DEADLINE = "8"


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        os.environ["RAY_TMPDIR"] = temporary
        (Path(temporary) / "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
        second = cluster.add_node(num_cpus=3)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        photos, shards = write_real_photos(Path(folder) / "photos", side=160), f"{folder}/shards"
        prepare(find_photos([str(photos)]), shards, cutting=Cutting(sub_image=64, step=64, minimum=64))
        stop = threading.Event()
        heard: list[Record] = []

        def hear(record: Record) -> None:
            heard.append(record)
            events = [record["event"] for record in heard]
            if record["event"] == "train" and events.count("train") == 1:
                drain(cluster.address, second.node_id)
            if record["event"] == "train" and events.count("start") == 2:
                stop.set()

        run = Run.at(f"{folder}/run")
        try:
            train(parse_recipe(RECIPE), run, shards=shards, listen=hear, stop=stop)
        except Interrupted:
            outcome = "stopped when it had gone on"
        else:
            outcome = "ended"
        notices = [(record["step"], record["nodes"], record["seconds"]) for record in run.records("notice")]
        starts = [(record["step"], record["world"]) for record in run.records("start")]
        print(json.dumps({"outcome": outcome, "notices": notices, "starts": starts}))
        ray.shutdown()
        cluster.shutdown()


def drain(address: str, node: str) -> None:
    """What a spot instance's notice comes to."""
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command = [RAY, "drain-node", "--address", address, "--node-id", node, *notice]
    command += ["--deadline-remaining-seconds", DEADLINE]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(*sys.argv[1:])
