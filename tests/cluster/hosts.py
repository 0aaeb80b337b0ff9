"""Several hosts on one machine: network namespaces joined by a bridge, each with processes, a name and a temporary
folder of its own. What they share is one folder, as by NFS. Needs root.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.ray_head import RAY, environment_of

DASHBOARD = "http://127.0.0.1:8265"
# A node is given up within seconds; Ray's own patience is half a minute.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


def why_not() -> str | None:
    """What hinders hosts on this machine; None where they can be made."""
    if missing := [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]:
        return f"no {missing[0]} on this machine"
    name = f"rsr-{secrets.token_hex(3)}"
    alone = ["unshare", "--mount", "--pid", "--uts", "--fork", "true"]
    tried = subprocess.run(alone, capture_output=True)
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return None if made.returncode == tried.returncode == 0 else "no right to make network and mount namespaces"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass
class Host:
    """A host with `ray start` running in it; its network namespace has its name."""

    name: str
    address: str
    process: subprocess.Popen[bytes] | None = None

    def cut(self) -> None:
        """Nothing passes its link from now on, and nobody is told."""
        run("ip", "-n", self.name, "link", "set", "eth0", "down")

    def kill(self) -> None:
        """SIGKILL of every process in the host, at once: its first one takes the others along."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Hosts:
    """A Ray cluster of hosts: the first is its head, without CPUs; the others have `cpus` each."""

    folder: Path
    cpus: int
    tag: str = field(default_factory=lambda: f"rsr{secrets.token_hex(2)}")
    subnet: int = field(default_factory=lambda: 1 + secrets.randbelow(254))
    hosts: list[Host] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = {**environment_of(str(self.private)), **IMPATIENT, "GLOO_SOCKET_IFNAME": "eth0"}
        self.private.mkdir()
        self.shared.mkdir()
        run("ip", "link", "add", self.tag, "type", "bridge")
        run("ip", "link", "set", self.tag, "up")

    @property
    def private(self) -> Path:
        """Another folder on each host, at one path."""
        return self.folder / "T"

    @property
    def shared(self) -> Path:
        """The same folder on each host."""
        return self.folder / "S"

    def add(self) -> Host:
        """Another host, with a raylet that joins the cluster when it is up."""
        number = len(self.hosts) + 1
        host = Host(f"{self.tag}-{number}", f"10.77.{self.subnet}.{10 + number}")
        self._make_network(host, f"{self.tag}{number}")
        (self.folder / f"host{number}").mkdir()
        prepare = f"mount --bind {self.folder}/host{number} {self.private} && hostname {host.name}"
        start = f"{RAY} start --block --disable-usage-stats --node-ip-address {host.address} "
        start += f"--object-store-memory {1 << 28} "
        if number == 1:
            start += f"--head --port 6379 --num-cpus 0 --dashboard-host 127.0.0.1 --dashboard-port {DASHBOARD[-4:]}"
        else:
            start += f"--address {self.hosts[0].address}:6379 --num-cpus {self.cpus}"
        # Ray gives a raylet half a minute to start, which a busy machine may not have: then all is done again.
        again = f"until {start}; do kill -KILL -- -1; sleep 1; done"
        alone = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / f"host{number}.log").open("wb") as log:
            host.process = subprocess.Popen(
                ["ip", "netns", "exec", host.name, *alone, "bash", "-c", f"{prepare} && {again}"],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        self.hosts.append(host)
        return host

    def _make_network(self, host: Host, outside: str) -> None:
        run("ip", "netns", "add", host.name)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        run("ip", "link", "set", outside, "master", self.tag, "up")
        for words in (f"addr add {host.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run("ip", "-n", host.name, *words.split())

    def on_head(self, *command: str) -> subprocess.Popen[str]:
        """A program on the head's network, which alone reaches dashboard and job server."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.hosts[0].name, *command],
            cwd=self.folder,
            env={**self.environment, "RAY_API_SERVER_ADDRESS": DASHBOARD},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, *command: str, timeout: float = 600) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a program on the head's network."""
        process = self.on_head(*command)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, out, err

    def submit(self, *arguments: str) -> tuple[int, str, str]:
        """`ray-sr submit` over the head's loopback, to its end."""
        return self.ended(sys.executable, "-m", "ray_sr.cli", "submit", *arguments)

    def wait_for_head(self) -> None:
        token = self.environment["RAY_AUTH_TOKEN"]
        code = f"from tests.cluster.ray_head import wait_until_up; wait_until_up('{DASHBOARD}', '{token}')"
        tried, _, err = self.ended(sys.executable, "-c", code)
        if tried:
            raise RuntimeError(f"the head does not come up: {err[-2000:]}")

    def remove(self) -> None:
        for host in self.hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.tag], check=False, capture_output=True)


@contextmanager
def cluster_of_hosts(cpus: int) -> Iterator[Hosts]:
    """The head of a cluster whose further hosts have so many CPUs."""
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as folder:
        hosts = Hosts(Path(folder), cpus)
        try:
            hosts.add()
            hosts.wait_for_head()
            yield hosts
        finally:
            hosts.remove()
