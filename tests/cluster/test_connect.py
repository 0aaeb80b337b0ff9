"""Addresses that are wrong, dead or somebody else's; where Ray's files go; the CPUs of a container."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sr.cluster import available_cpus, telling_of_starvation
from ray_sr.cluster.connect import LONGEST_FOLDER, check_address, own_folder
from ray_sr.cluster.jobs import _WRONG_PYTHON, _pass_proxies_by, _proxy_hint
from ray_sr.errors import ClusterError, ResourceError

ROOT = Path(__file__).parents[2]
module = importlib.import_module("ray_sr.cluster.connect")  # the package's own `connect` is a function


@pytest.mark.parametrize(
    "address",
    [
        *("http://127.0.0.1:8265", "127.0.0.1", "ray://", "host:", ":6379", "host:70000", "a host:6379", ""),
        *("user@host:6379", "ray://host", "host:6379/x", "tcp://host:6379"),
    ],
)
def test_an_address_of_a_wrong_form_says_which_is_right(address: str) -> None:
    with pytest.raises(ClusterError, match=r"write HOST:6379, ray://HOST:10001, auto or local") as caught:
        check_address(address)
    assert "\n" not in str(caught.value)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def place(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_there_is_told_at_once(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = scheme + place(server)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"cannot reach the Ray cluster at .*: Connection refused"):
        check_address(address)
    assert time.monotonic() - began < 5
    with pytest.raises(ClusterError, match=r"cannot reach the Ray cluster at .*(not known|resolution)"):
        check_address(f"{scheme}nowhere.invalid:6379")


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown\r\n"])
def test_something_else_that_listens_is_told_within_seconds(
    answer: bytes | None, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: it takes the connection and says nothing, as a stopped process does."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    kept: list[socket.socket] = []

    def serve() -> None:
        peer, _ = listening.accept()
        kept.append(peer)
        if answer is not None:
            peer.recv(33)
            peer.sendall(answer)
            peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ClusterError, match=r"cannot reach the Ray cluster at .*: (what listens|timed out)"):
        check_address(place(listening))
    thread.join()


@pytest.mark.usefixtures("ray_local")
def test_a_cluster_that_lives_is_taken() -> None:
    import ray

    check_address(ray.get_runtime_context().gcs_address)
    check_address("auto")


def test_ray_goes_where_its_sockets_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"/tmp/ray-{os.getuid()}"
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        short = f"/tmp/{'x' * (LONGEST_FOLDER - len('/tmp/') - len('/ray'))}"
        monkeypatch.setenv(name, short)
        assert own_folder() is None
        monkeypatch.setenv(name, f"{short}x")
        assert own_folder() == own
        monkeypatch.setenv(name, "/tmp/" + "ü" * 19)  # 43 bytes in 24 letters
        assert own_folder() == own
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    assert own_folder() == own
    monkeypatch.setattr(module, "_is_writable", lambda folder: False)
    with pytest.raises(ResourceError, match=r"set RAY_TMPDIR to a folder of yours"):
        own_folder()


@pytest.mark.cluster
def test_ray_starts_with_a_long_tmpdir_and_a_home_that_is_none(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 12)
    long.mkdir()
    environment = {**os.environ, "TMPDIR": str(long), "HOME": "/dev/null"}
    environment.pop("RAY_ADDRESS", None)
    environment.pop("RAY_TMPDIR", None)
    program = (
        "import ray; from ray_sr.cluster import local_ray\nlocal_ray(cpus=2)\nprint(ray.get(ray.put('started')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.stdout == "started\n", done.stderr[-2000:]


def test_cpus_are_those_that_the_process_may_use() -> None:
    """By its affinity; Ray reads the limit of the container."""
    program = "import os; os.sched_setaffinity(0, {0})\nfrom ray_sr.cluster import available_cpus as n; print(n())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr
    from ray._private.utils import get_num_cpus

    assert available_cpus() == min(len(os.sched_getaffinity(0)), get_num_cpus())


@pytest.mark.cluster
def test_one_cpu_is_enough_to_train(tmp_path: Path) -> None:
    """Ray has as many as `doctor` shows; training and its crops share the only one."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.cluster.one_cpu", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.pop("two_workers") == (
        "2 workers with 1 CPUs leave none of 1 CPUs to make crops: lower training.cpus_per_worker (0.25) or "
        "training.workers"
    )
    assert result == {"cpus": [1, 1], "steps": {"tasks": 6, "worker": 6}, "trials": 1}


def test_proxies_are_gone_past_on_the_way_to_private_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    for host in ("127.0.0.1", "10.1.2.3", "localhost", "[::1]", "head.local"):
        assert _proxy_hint(f"http://{host}:8265")
        _pass_proxies_by(f"http://{host}:8265")
        assert not _proxy_hint(f"http://{host}:8265"), host
    _pass_proxies_by("http://ray.example.org:8265")
    hint = _proxy_hint("http://ray.example.org:8265")
    assert hint == "; it was asked by way of the proxy proxy.example:3128, which NO_PROXY=ray.example.org goes past"
    monkeypatch.setenv("no_proxy", "ray.example.org")
    assert not _proxy_hint("http://ray.example.org:8265")


@pytest.mark.parametrize(
    ("log", "wrong"),
    [
        ("/bin/sh: 1: python: not found\n", True),
        ("bash: line 1: python: command not found\n", True),
        ("/usr/bin/python: No module named ray_sr.cli\n", True),
        ("Traceback\nModuleNotFoundError: No module named 'click'\n", True),
        ("/usr/bin/python: Error while finding module spec for 'ray_sr.cli' (ModuleNotFoundError: No module named "
         "'ray_sr')\n", True),
        ("error: photo.png: no such file\n", False),
    ],
)  # fmt: skip
def test_a_wrong_python_on_the_head_is_known_by_its_words(log: str, wrong: bool) -> None:
    assert bool(_WRONG_PYTHON.search(log)) == wrong


class Counting:
    """What progress shows, kept."""

    def __init__(self) -> None:
        self.count = 0
        self.said: list[str] = []
        self.heard = threading.Event()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.heard.set()


@pytest.mark.usefixtures("ray_local")
def test_waiting_for_a_cpu_is_said_once_in_a_while() -> None:
    import ray

    neighbour = ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]))(_Neighbour).remote()
    ray.get(neighbour.is_there.remote())
    progress = Counting()
    with telling_of_starvation(progress, 0.2):
        assert progress.heard.wait(60)
    assert set(progress.said) == {"nothing for a while and no CPU of the cluster is free: it waits, or is slow"}
    ray.kill(neighbour)
    while ray.available_resources().get("CPU", 0) < 1:
        time.sleep(0.05)
    progress = Counting()
    with telling_of_starvation(progress, 0.05):
        assert not progress.heard.wait(0.5)


class _Neighbour:
    def is_there(self) -> bool:
        return True
