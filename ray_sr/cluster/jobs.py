"""Sends commands to a cluster as Ray jobs, follows their logs, and brings their exit codes back."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientError
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from ray_sr.errors import ClusterError, RecipeError
from ray_sr.signals import answer_signals

PACKAGE = Path(__file__).parents[1]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
POLL_SECONDS = 0.5
RECONNECT_SECONDS = 60.0
LARGEST_FILE = 1 << 20
# A job is run by the `python` of the head's PATH, which has to be the one that Ray itself runs in.
_WRONG_PYTHON = re.compile(
    r"python: (?:command )?not found|No module named '?(?:ray_sr|ray|click|pydantic|torch|yaml)\b"
)
# Where data, runs and models are is the same for the job as here; whatever else the cluster has set stays.
PASSED_ON = ("RAY_SR_STORAGE", "RAY_SR_STORE")
STOP_SECONDS = "120"  # what a stopped job has for its checkpoint; Ray's default of 3 s is too short for one
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class RayJob:
    """A command of ours for the cluster: arguments of `ray-sr`, local files to send along, what to reserve.

    In the arguments, a file's path is replaced by where the file lies on the cluster. `cpus` and
    `gpus` are for the job's own process, which is on the head where both are 0; what it starts reserves its own.
    """

    arguments: tuple[str, ...]
    files: tuple[str, ...] = ()
    cpus: float = 0.0
    gpus: float = 0.0
    name: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


class JobServer:
    """The job server of a cluster. Raises ClusterError where it cannot be reached or refuses.

    Ray decides when it is imported whether it sends a token: `cluster.use_token` comes before this module.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address or _address()
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Ray lets its variables win over the argument: what is said on the command line counts here.
        _pass_proxies_by(self.address)
        with self._talking(), _environment(RAY_API_SERVER_ADDRESS=self.address):
            self._client = JobSubmissionClient(self.address)

    def submit(self, job: RayJob) -> str:
        """Upload the job's files, start it, and return its id."""
        with tempfile.TemporaryDirectory(prefix="ray-sr-job-") as folder, self._talking():
            arguments = stage(job, Path(folder))
            passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, **passed, **job.environment}
            if job.name and (state := self._state_of(job.name)):
                raise RecipeError(
                    f"--id {job.name}: the cluster has a job of this id ({state}): give another one, or follow it "
                    f"with --follow {job.name}"
                )
            return self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ray_sr.cli", *arguments]),
                submission_id=job.name,
                runtime_env={"working_dir": folder, "env_vars": environment},
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
            )

    def _state_of(self, job_id: str) -> str | None:
        """PENDING, RUNNING, SUCCEEDED …; None where the cluster knows no such job."""
        found = next((job for job in self._client.list_jobs() if job.submission_id == job_id), None)
        return str(found.status.name) if found else None

    def follow(self, job_id: str, show: Callable[[str], None]) -> int:
        """`show` the job's log until it ends; returns the exit code of its process, 130 if it was stopped.

        A connection that breaks is made again where the log stopped. ClusterError where the job could not run.
        """
        with self._talking():
            self._client.get_job_status(job_id)  # raises for an id that nobody knows
        with _ctrl_c() as pressed:
            return self._follow(job_id, _Log(show, pressed))

    def _follow(self, job_id: str, log: _Log) -> int:
        reached = time.monotonic()
        while True:
            log.stop_if_pressed()
            try:
                with self._talking():
                    asyncio.run(log.tail(self._client, job_id))
                    info = self._client.get_job_info(job_id)
                reached = time.monotonic()
            except ClusterError:
                if not log.seen or time.monotonic() - reached > RECONNECT_SECONDS:
                    raise
            else:
                if (code := self._exit_code(job_id, info)) is not None:
                    if code and (wrong := _WRONG_PYTHON.search(log.end)):
                        raise ClusterError(
                            f"the head of the cluster was started without its environment's PATH ({wrong[0]}): "
                            "activate it before `ray start`, or set PATH in the cluster's file"
                        )
                    return code
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _exit_code(job_id: str, info: Any) -> int | None:
        """Of a job that has ended; None while it runs."""
        if not info.status.is_terminal():
            return None
        if info.status.name == "SUCCEEDED":
            return 0
        if info.status.name == "STOPPED":
            return 130
        if info.driver_exit_code:  # negative where a signal ended it
            return int(info.driver_exit_code) % 256
        raise ClusterError(f"job {job_id} did not run: {_line(info.message)}")

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (RayError, ClientError, RuntimeError, OSError, ValueError) as error:
            raise self._problem(error) from None

    def _problem(self, error: Exception) -> ClusterError:
        text = str(error)
        if isinstance(error, AuthenticationError):
            return ClusterError(
                f"{self.address} refuses without the cluster's token: give it by RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the head shows it)"
            )
        if isinstance(error, ConnectionError | ClientError):
            return ClusterError(
                f"no job server at {self.address}: is the cluster up, with ray[default] on its head, and the "
                "address right? (--address, RAY_API_SERVER_ADDRESS; `ray dashboard cluster.yaml` makes a tunnel)"
                + _proxy_hint(self.address)
            )
        return ClusterError(f"{self.address}: {_line(text)}")


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Set by Ctrl-C beside its KeyboardInterrupt, which what it falls into may lose.

    Left alone, asyncio.run cancels its task instead; where the connection answers that with an error of its own,
    the log would be followed again.
    """
    pressed = threading.Event()

    def hear() -> NoReturn:
        pressed.set()
        raise KeyboardInterrupt

    restore = answer_signals(hear, [signal.SIGINT])
    try:
        yield pressed
    finally:
        restore()


class _Log:
    """What has been shown of a job's log; Ray begins at its start whenever it is asked."""

    def __init__(self, show: Callable[[str], None], pressed: threading.Event) -> None:
        self._show, self._pressed = show, pressed
        self.seen = 0
        self.end = ""

    def stop_if_pressed(self) -> None:
        if self._pressed.is_set():
            raise KeyboardInterrupt

    async def tail(self, client: JobSubmissionClient, job_id: str) -> None:
        """Show what is new until the job ends."""
        position = 0
        async for text in client.tail_job_logs(job_id):
            self.stop_if_pressed()
            if position + len(text) > self.seen:
                new = text[max(0, self.seen - position) :]
                self._show(new)
                self.end = (self.end + new)[-2000:]
            position += len(text)
            self.seen = max(self.seen, position)


def stage(job: RayJob, folder: Path) -> list[str]:
    """Copy what the job needs into `folder`, to be uploaded; returns the arguments as the job will need them.

    Recipes and the like come along, and this package where it runs from a checkout: the cluster may have an
    older one. Nothing else of the current folder does.
    """
    arguments = list(job.arguments)
    for number, name in enumerate(job.files):
        source = Path(name)
        if source.stat().st_size > LARGEST_FILE:
            raise RecipeError(f"{name}: too large to send with a job: put it where the cluster reads it")
        target = f"files/{number}/{source.name}"
        (folder / target).parent.mkdir(parents=True)
        shutil.copyfile(source, folder / target)
        place = next(i for i, word in enumerate(arguments) if word == name or word.endswith(f"={name}"))
        arguments[place] = arguments[place].removesuffix(name) + target
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return arguments


def _address() -> str:
    """The job server's address as Ray's own commands find it; the usual one of this machine without any."""
    said = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    return said if "://" in said else DEFAULT_ADDRESS


def _pass_proxies_by(address: str) -> None:
    """A proxy reaches neither this machine nor, as a rule, the addresses of a private network."""
    host = urlsplit(address).hostname or ""
    try:
        inside = ipaddress.ip_address(host).is_private
    except ValueError:
        inside = host == "localhost" or host.endswith(".local")
    if inside and not proxy_bypass(host):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


def _proxy_hint(address: str) -> str:
    """What to look at where a proxy of the environment stands between."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return ""
    name = urlsplit(proxy).netloc.rpartition("@")[2]
    return f"; it was asked by way of the proxy {name}, which NO_PROXY={parts.hostname} goes past"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _line(text: str | None) -> str:
    """The line of a message of Ray's that tells most: the last of a traceback."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else "Ray does not say why"
