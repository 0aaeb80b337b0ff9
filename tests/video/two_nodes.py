"""A cluster of two nodes: prints its address when both are there, and ends when its input does.

python -m tests.video.two_nodes
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import ray
from ray.cluster_utils import Cluster


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        os.environ["RAY_TMPDIR"] = temporary
        (Path(temporary) / "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        ray.shutdown()
        print(cluster.address, flush=True)
        sys.stdin.read()
        cluster.shutdown()


if __name__ == "__main__":
    main()
