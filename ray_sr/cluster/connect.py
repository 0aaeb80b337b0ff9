"""Connects to Ray: the cluster of RAY_ADDRESS, or a Ray of this process's own."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray_sr.errors import ClusterError, ResourceError
from ray_sr.storage import first_line

CAPACITY = "RAY_SR_CAPACITY"
STARVED_SECONDS = 10.0
ANSWER_SECONDS = 10.0
# A path of a socket has 107 bytes at most, of which /session_DATE_TIME_PID/sockets/plasma_store take up to 66.
LONGEST_FOLDER = 107 - 66
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):(?P<port>\d{1,5})")

# Ray reads these when it starts; what a user has set wins.
_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker is shown twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in workers and driver
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES of workers without GPUs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # one checkpoint is taken note of at each, by default every 2 s
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
}


def connect(verbose: bool = False, *, dashboard: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS (set inside `ray job submit`), else start Ray on this machine.

    `dashboard`: start it with the latter, where something asks Ray's state API.
    Raises ClusterError where the cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        check_address(address)
        _prepare(verbose)
        try:
            ray.init(address=address, logging_level=_level(verbose), log_to_driver=verbose)
        except Exception as error:  # Ray's own, bare ones, and what its address or its token is refused with
            raise ClusterError(f"cannot reach the Ray cluster at {address}: {_reason(error)}") from error
    else:
        local_ray(verbose=verbose, dashboard=dashboard)


def local_ray(
    cpus: int | None = None,
    *,
    temporary: str | None = None,
    object_store_bytes: int | None = None,
    verbose: bool = False,
    dashboard: bool = False,
) -> None:
    """Start Ray on this machine for this process alone.

    `dashboard` serves Ray's web page and state API on 127.0.0.1; starting it takes a few seconds.
    `cpus` is by default what the machine or its container gives. Raises ResourceError where Ray cannot be started
    here.
    """
    import ray

    _prepare(verbose)
    temporary = temporary or own_folder()
    _have_token()
    options: dict[str, Any] = {"_temp_dir": temporary} if temporary else {}
    try:
        ray.init(
            address="local",
            num_cpus=cpus or available_cpus(),
            include_dashboard=dashboard,
            configure_logging=True,
            logging_level=_level(verbose),
            log_to_driver=verbose,
            object_store_memory=object_store_bytes,
            **options,
        )
    except Exception as error:  # Ray raises a bare Exception where a process of its own does not come up
        raise ResourceError(f"cannot start Ray on this machine: {_reason(error)}") from error


def check_address(address: str) -> None:
    """Raises ClusterError where RAY_ADDRESS has another form than Ray's, or nobody answers there within seconds.

    Ray itself tries for a quarter of an hour.
    """
    if address in ("auto", "local"):
        return
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ClusterError(
            f"RAY_ADDRESS={address}: write HOST:6379, ray://HOST:10001, auto or local; the address of a job server "
            "(http://…) belongs into RAY_API_SERVER_ADDRESS"
        )
    try:
        with socket.create_connection(
            (found["host"].strip("[]"), int(found["port"])), timeout=ANSWER_SECONDS
        ) as peer:
            speaks = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_grpc(peer)
    except OSError as error:
        raise ClusterError(f"cannot reach the Ray cluster at {address}: {first_line(error)}") from None
    if not speaks:
        raise ClusterError(f"cannot reach the Ray cluster at {address}: what listens there is not Ray")


def _speaks_grpc(peer: socket.socket) -> bool:
    """Whether the other side greets as HTTP/2 does: a frame of type SETTINGS (RFC 9113, section 3.4)."""
    peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    header = b""
    while len(header) < 4 and (more := peer.recv(4 - len(header))):
        header += more
    return header[3:4] == b"\x04"


def available_cpus() -> int:
    """CPUs that this process may use: those of its affinity, or fewer where its container has a limit."""
    from ray._private.utils import get_num_cpus

    return min(len(os.sched_getaffinity(0)), max(1, int(get_num_cpus(override_docker_cpu_warning=True))))


def own_folder() -> str | None:
    """Where Ray's files go if not into its usual folder: that is another user's, or its name too long."""
    usual = os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")
    if len(os.fsencode(usual)) <= LONGEST_FOLDER and _is_writable(usual):
        return None
    own = f"/tmp/ray-{os.getuid()}"
    if not _is_writable(own):
        raise ResourceError(
            f"neither {usual} nor {own} can hold Ray's files: set RAY_TMPDIR to a folder of yours with a short "
            f"name (at most {LONGEST_FOLDER - len('/ray')} bytes)"
        )
    return own


def _is_writable(folder: str) -> bool:
    """Whether it is there for this user, or can be made."""
    while not os.path.exists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _have_token() -> None:
    """Give Ray a token for this process's own cluster where it could not keep one in this user's home."""
    said = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    file = Path("~/.ray/auth_token").expanduser()
    kept = os.access(file, os.R_OK) if os.path.exists(file) else _is_writable(str(file.parent))
    if not said and not kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _reason(error: BaseException) -> str:
    """The first sentence of one of Ray's long messages."""
    text = " ".join(first_line(error).split())
    return text.removesuffix(", either:").rstrip(":") or type(error).__name__


def capacity() -> dict[str, float]:
    """Resources of the cluster, and those that its autoscaler may bring it to: `RAY_SR_CAPACITY` of the head.

    Ray knows the latter but tells nobody; the files for `ray up` and KubeRay set it ("CPU=128,GPU=8").
    Raises ClusterError where it cannot be read.
    """
    import ray

    have = ray.cluster_resources()
    text = os.environ.get(CAPACITY, "")
    try:
        pairs = (item.split("=") for item in text.split(",") if item)
        most = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ClusterError(f"{CAPACITY}={text}: write it like CPU=128,GPU=8") from None
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def task_cpus() -> float:
    """CPUs that a task reserves which makes crops beside training: one, or half of a cluster's only one."""
    have = capacity().get("CPU", 0)
    return have / 2 if 0 < have < 2 else 1.0


def is_one_node() -> bool:
    """Whether the cluster is a single node and no autoscaler will bring others."""
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    return nodes == 1 and capacity().get("CPU", 0) <= ray.cluster_resources().get("CPU", 0)


def require_shared(*files: str) -> None:
    """Have every other node of the cluster look for these files, which are here. URIs are left out.

    Raises ResourceError where a node does not find one: its folder is no share.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    local = [file for file in files if "://" not in file]
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not local or not others:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(missing_here)
    found = [look.options(scheduling_strategy=Affinity(node, soft=False)).remote(local) for node in others]
    try:
        answers = [answer for answer in ray.get(found) if answer]
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node went while it was asked for {local[0]}: {first_line(error)}") from None
    if answers:
        raise not_shared(answers[0])


def missing_here(files: Sequence[str]) -> tuple[str, str] | None:
    """The first of these files that is not on this node, with the node's name."""
    import socket

    return next(((file, socket.gethostname()) for file in files if not Path(file).exists()), None)


def not_shared(missing: tuple[str, str]) -> ResourceError:
    """What to tell of an answer of `missing_here`."""
    file, node = missing
    return ResourceError(
        f"{Path(file).parent}: node {node} does not have it, it is a folder of one machine: several need a share "
        "that all of them have at this path, or a bucket (RAY_SR_STORAGE)"
    )


class Counting(Protocol):
    """Progress: how much is done, and where lines are said."""

    count: int

    def say(self, text: str) -> None: ...


@contextmanager
def telling_of_starvation(progress: Counting, seconds: float = STARVED_SECONDS) -> Iterator[None]:
    """While the block waits for tasks, say now and then that nothing has come and no CPU is free for them."""
    import ray

    ended = threading.Event()

    def watch() -> None:
        count, wait = progress.count, seconds
        while not ended.wait(wait):
            if progress.count == count and ray.available_resources().get("CPU", 0) < 1:
                progress.say("nothing for a while and no CPU of the cluster is free: it waits, or is slow")
                wait = 6 * seconds
            count = progress.count

    thread = threading.Thread(target=watch, name="starvation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def use_token() -> None:
    """Let Ray's clients show this user's token, if there is one; to be called before Ray is imported.

    Ray's head asks for it by default, while its clients show none unless RAY_AUTH_MODE says so.
    """
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or os.path.isfile(file):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def disconnect() -> None:
    """Leave the cluster, or end the Ray that `connect` started."""
    import ray

    ray.shutdown()


def _prepare(verbose: bool) -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(_level(verbose))


def _level(verbose: bool) -> int:
    return logging.INFO if verbose else logging.ERROR
