"""Makes shards and trains where this process has one CPU, and prints what came of it as JSON.

A program of its own, because a process belongs to one Ray at a time.
    python -m tests.cluster.one_cpu FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import ray

from ray_sr.cluster import available_cpus, local_ray
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.errors import ResourceError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.serving.app import fit_to_cluster, require_room
from ray_sr.serving.options import ServiceOptions
from ray_sr.training.launch import train
from ray_sr.training.runs import Run
from ray_sr.tuning.budget import trials_at_once
from tests.photos import write_real_photos

RECIPE = """
name: narrow
scale: 2
data: {crop: 32, batch: 4, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 6, losses: [{kind: l1}]}
validation: {photos: 0}
training: {log_every: 2, checkpoint_every: 100}
"""


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def refusal(*overrides: str) -> str:
    try:
        train(recipe(*overrides), Run.at("nowhere"), shards="shards")
    except ResourceError as error:
        return str(error)
    return "not refused"


def main(folder: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.chdir(folder)
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        local_ray(temporary=temporary, object_store_bytes=1 << 28)
        photos = write_real_photos(Path("photos"), side=96)
        prepare(find_photos([str(photos)]), "shards", cutting=Cutting(sub_image=64, step=64, minimum=64))
        require_room(fit_to_cluster(ServiceOptions(model="bicubic")))
        result = {
            "cpus": [available_cpus(), ray.cluster_resources()["CPU"]],
            "steps": {
                where: train(recipe(f"data.degrade_in={where}"), Run.at(where), shards="shards").step
                for where in ("tasks", "worker")
            },
            "trials": trials_at_once(recipe()),
            "two_workers": refusal("training.workers=2"),
        }
        print(json.dumps(result))
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
