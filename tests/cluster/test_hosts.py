"""The whole product on several hosts: prepare, train over two of them, publish, serve; with a cut link, a dead host
in the middle of training, and another under load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ray_sr.training.monitor import read_journal
from tests.cluster.hosts import DASHBOARD, Host, Hosts, cluster_of_hosts, why_not
from tests.cluster.ray_head import RAY
from tests.photos import write_real_photos

STEPS = 400
RECIPE = f"""
name: hosts
scale: 2
data: {{crop: 32, batch: 4, crops_per_image: 2}}
generator: {{kind: srresnet, blocks: 1, channels: 8}}
pretrain: {{steps: {STEPS}, losses: [{{kind: l1}}]}}
validation: {{photos: 1, every: 200}}
training:
  {{workers: 2, placement: spread, cpus_per_worker: 0.5, log_every: 5, checkpoint_every: 20, max_failures: 10}}
"""
PATIENCE = 300.0
Found = TypeVar("Found")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(f"several hosts on one machine: {reason} (needs root, or a container with CAP_SYS_ADMIN)")
    with cluster_of_hosts(cpus=2) as hosts:
        for _ in range(3):
            host = hosts.add()
            wait(partial(joined, hosts, host), f"{host.name} to join")
        (hosts.shared / "hosts.yaml").write_text(RECIPE)
        write_real_photos(hosts.shared / "photos", side=160)
        yield hosts


def wait(look: Callable[[], Found | None], what: str) -> Found:
    """What `look` gives when it gives something."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE:.0f} s for {what}")


def listed(hosts: Hosts, what: str, *filters: str) -> list[dict[str, Any]]:
    """Ray's own lists of its nodes and actors."""
    chosen = [word for text in filters for word in ("--filter", text)]
    command = (RAY, "list", what, *chosen, "--format", "json", "--address", DASHBOARD)

    def ask() -> str | None:
        code, out, _ = hosts.ended(*command)
        if code != 0:
            return None  # the dashboard is not up yet, or too busy to answer
        return "[]" if out.startswith("No resource in the cluster") else out

    found: list[dict[str, Any]] = json.loads(wait(ask, f"Ray's list of {what}"))
    return found


def living(hosts: Hosts) -> dict[str, str]:
    """Address by node id."""
    return {node["node_id"]: node["node_ip"] for node in listed(hosts, "nodes", "state=ALIVE")}


def joined(hosts: Hosts, host: Host) -> bool:
    return host.address in living(hosts).values()


def hosts_of(hosts: Hosts, actor: str) -> list[Host]:
    """Where the living actors of this class are."""
    nodes = living(hosts)
    found = {nodes.get(actor["node_id"]) for actor in listed(hosts, "actors", f"class_name={actor}", "state=ALIVE")}
    return [host for host in hosts.hosts if host.address in found]


@pytest.mark.nightly  # five minutes; what it puts together, the other tests of clusters and nodes show by day
def test_prepare_train_publish_and_serve_on_several_hosts(hosts: Hosts) -> None:
    shards, store = str(hosts.shared / "shards"), str(hosts.shared / "store")
    cutting = ("--sub-image", "64", "--step", "64", "--minimum", "64")
    code, out, err = hosts.submit("prepare", str(hosts.shared / "photos"), "-o", shards, *cutting)
    assert code == 0, out + err
    refuses_a_folder_of_one_host(hosts, shards)
    run = train_through_losses(hosts, shards)
    code, out, err = hosts.submit("publish", str(run), "--store", store, "--promote", "best")
    assert code == 0, out + err
    serve_through_a_loss(hosts, store)


def refuses_a_folder_of_one_host(hosts: Hosts, shards: str) -> None:
    local = hosts.private / "run"
    code, out, err = hosts.submit(
        "train", "-c", str(hosts.shared / "hosts.yaml"), "--data", shards, "-o", str(local)
    )
    assert code == 4, out + err
    assert f"error: {local}: node " in out
    assert "does not have it, it is a folder of one machine" in out


def train_through_losses(hosts: Hosts, shards: str) -> Path:
    """A worker's host loses its link, another dies: each costs the steps since the last checkpoint."""
    run = hosts.shared / "run"
    recipe = str(hosts.shared / "hosts.yaml")
    job = hosts.on_head(sys.executable, "-m", "ray_sr.cli", "submit", "train", "-c", recipe, "--data", shards,
                        "-o", str(run))  # fmt: skip
    try:
        first = under_way(hosts, run, job, starts=1)
        assert len(first) == 2, "the workers are on two hosts"
        first[0].cut()
        second = under_way(hosts, run, job, starts=2)
        assert first[0] not in second
        hosts.add()
        second[0].kill()
        out, err = job.communicate(timeout=600)
    finally:
        job.kill()
    assert job.returncode == 0, out + err
    records = read_journal(run / "metrics.jsonl")
    starts = [record for record in records if record["event"] == "start"]
    assert len(starts) >= 3
    assert all(record["world"] == 2 for record in starts)
    assert all(record["step"] % 20 == 0 for record in starts)
    assert [record["step"] for record in records if record["event"] == "train"] == list(range(5, STEPS + 1, 5))
    assert f"{STEPS} steps done" in out
    return run


def under_way(hosts: Hosts, run: Path, job: subprocess.Popen[str], starts: int) -> list[Host]:
    """The hosts of the workers when a checkpoint and some steps of this start of the run are behind them."""

    def look() -> bool:
        assert job.poll() is None, job.communicate()
        if not (run / "metrics.jsonl").exists():
            return False
        records = read_journal(run / "metrics.jsonl")
        begun = [record["step"] for record in records if record["event"] == "start"]
        steps = [record["step"] for record in records if record["event"] == "train"]
        return len(begun) >= starts and bool(steps) and steps[-1] >= begun[-1] + 25

    wait(look, f"start {starts} of the run to make steps")
    return hosts_of(hosts, "RayTrainWorker")


def serve_through_a_loss(hosts: Hosts, store: str) -> None:
    """The host of the generator's replica dies under load: another one answers."""
    serving = ("python", "-m", "ray_sr.cli", "serve", "-n", "best", "--store", store)
    code, out, err = hosts.ended(RAY, "job", "submit", "--no-wait", "--", *serving)
    assert code == 0, out + err
    answers = hosts.shared / "answers"
    load = hosts.on_head(sys.executable, "-m", "tests.cluster.load", "http://127.0.0.1:8000", str(answers))
    try:
        wait(lambda: count(answers, "200") >= 3, "the service to answer")
        (host,) = hosts_of(hosts, "ServeReplica:ray-sr:Generator")
        others = [other for other in hosts.hosts[1:] if other is not host]
        wait(lambda: any(joined(hosts, other) for other in others), "a host that can take over")
        host.kill()
        killed = len(lines(answers))
        wait(lambda: lines(answers)[killed:].count("200") >= 10, "the service to heal")
        (other,) = hosts_of(hosts, "ServeReplica:ray-sr:Generator")
        assert other is not host
    finally:
        load.kill()


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def count(file: Path, code: str) -> int:
    return lines(file).count(code)
