"""A Ray head with a job server and a token of its own, as a process beside the tests."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 180.0
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


@dataclass(frozen=True)
class Head:
    """A running head: the URL of its job server, and the environment in which clients may talk to it."""

    url: str
    environment: dict[str, str]

    def client(self, *command: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
        """A program that talks to the head."""
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def environment_of(temporary: str) -> dict[str, str]:
    """A clean environment for a cluster: no variable of Ray but those given here, and the code of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAY_SR_"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    code = {"PYTHONPATH": str(Path(__file__).parents[2])}
    # `python` of a job's entry point is this one, as in an image, whether its environment is activated or not.
    path = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    return {**kept, **token, **code, **path, "RAY_TMPDIR": temporary, "OMP_NUM_THREADS": "1"}


def wait_until_up(url: str, token: str, alive: Callable[[], bool] = lambda: True) -> None:
    """Returns when the job server answers those who know the token. Raises where it does not come up."""
    request = urllib.request.Request(f"{url}/api/version")
    request.add_header("Authorization", f"Bearer {token}")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and alive():
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"no Ray head at {url}")


@contextmanager
def running_head(cpus: int) -> Iterator[Head]:
    """A head on this machine with free ports, a temporary folder and a token of its own."""
    # Ray puts sockets into its temporary folder, whose paths are limited to about 100 characters.
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as temporary:
        environment = environment_of(temporary)
        port, dashboard, client, agent = free_ports(4)
        url = f"http://127.0.0.1:{dashboard}"
        command = [RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", str(cpus)]
        command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--object-store-memory", str(1 << 29)]
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
        command += ["--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)]
        quiet = subprocess.DEVNULL
        head = subprocess.Popen(command, cwd=temporary, env=environment, stdout=quiet, stderr=quiet)
        try:
            wait_until_up(url, environment["RAY_AUTH_TOKEN"], lambda: head.poll() is None)
            yield Head(url, {**environment, "RAY_API_SERVER_ADDRESS": url})
        finally:
            head.send_signal(signal.SIGTERM)  # with --block, the command ends what it has started
            head.wait(60)
