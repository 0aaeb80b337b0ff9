"""Tells Ray when the cloud takes a spot instance back, so that training saves a checkpoint before.

Each cloud announces it at an address that only the instance itself can ask; nobody but the instance passes it on.
`python -m ray_sr.cluster.preemption aws` (or gcp) does, beside `ray start`, and ends when it has.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

METADATA = "http://169.254.169.254"
POLL_SECONDS = 2.0
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Cloud:
    """How a cloud announces it. `announced` asks at the metadata's address; `seconds` are left from then on."""

    announced: Callable[[str], bool]
    seconds: int


def _aws(metadata: str) -> bool:
    """Whether EC2 has set a time for stopping or terminating this instance (IMDSv2)."""
    token = _ask(f"{metadata}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    address = f"{metadata}/latest/meta-data/spot/instance-action"
    return _ask(address, "GET", {"X-aws-ec2-metadata-token": token or ""}) is not None


def _gcp(metadata: str) -> bool:
    """Whether Compute Engine has begun to preempt this instance."""
    address = f"{metadata}/computeMetadata/v1/instance/preempted"
    return _ask(address, "GET", {"Metadata-Flavor": "Google"}) == "TRUE"


CLOUDS = {"aws": Cloud(_aws, seconds=110), "gcp": Cloud(_gcp, seconds=25)}


def _ask(address: str, method: str, headers: dict[str, str]) -> str | None:
    """The answer's text; None where there is nothing at the address. OSError where nobody answers."""
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def wait_for_notice(cloud: Cloud, metadata: str = METADATA) -> None:
    """Returns when the cloud has announced that it takes this instance."""
    while True:
        try:
            if cloud.announced(metadata):
                return
        except OSError as error:
            print(f"{metadata}: {error}; asking again", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def drain_here(seconds: int) -> None:
    """Announce to the Ray cluster that this node goes in so many seconds."""
    import ray

    from ray_sr.cluster import use_token

    use_token()
    ray.init(address="auto", log_to_driver=False)
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    ray.shutdown()
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes it back"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True)


def main(name: str, metadata: str = METADATA) -> None:
    cloud = CLOUDS[name]
    wait_for_notice(cloud, metadata)
    drain_here(cloud.seconds)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CLOUDS:
        sys.exit(f"usage: python -m ray_sr.cluster.preemption {'|'.join(CLOUDS)}")
    main(*sys.argv[1:])
