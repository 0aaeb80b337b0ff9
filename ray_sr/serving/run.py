"""Starts the service from Python: on a Ray of its own, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from ray_sr.cluster import connect, disconnect
from ray_sr.errors import ClusterError, RecipeError, ResourceError
from ray_sr.serving import proxy
from ray_sr.serving.app import build, fit_to_cluster, require_room
from ray_sr.serving.job_storage import JobStorage, jobs_location
from ray_sr.serving.keys import read_keys
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.webhooks import read_secret
from ray_sr.signals import answer_signals
from ray_sr.store import Store, load_model

APPLICATION = "ray-sr"


def checked_options(**fields: Any) -> ServiceOptions:
    """The options. Raises RecipeError, one line, where they make no sense."""
    try:
        return ServiceOptions.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def serve_forever(
    options: ServiceOptions, *, host: str = "127.0.0.1", port: int = 8000, insecure: bool = False
) -> None:
    """Serves until SIGINT or SIGTERM, then lets the requests under way finish. Prints the address.

    Raises what `running_service` raises.
    """
    with running_service(options, host=host, port=port, insecure=insecure) as url:
        stop = threading.Event()
        answer_signals(stop.set, [signal.SIGINT, signal.SIGTERM])
        named = ", ".join(options.models) + (" and all other models" if options.all_models else "")
        print(f"serving {named} at {url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        stop.wait()
        print("finishing the requests under way", file=sys.stderr, flush=True)


@contextmanager
def running_service(
    options: ServiceOptions, *, host: str = "127.0.0.1", port: int = 0, insecure: bool = False
) -> Iterator[str]:
    """URL of a service that answers while the block runs; port 0: any free one.

    Uses the Ray this process is connected to, else connects for the time of the block. Raises RecipeError for
    a public host without keys and without `insecure`, ModelError and InputError for a model that cannot be
    loaded, keys that cannot be read or a storage of jobs that cannot be used, ResourceError for replicas that no
    machine has room for, ClusterError where the service cannot start.
    """
    refuse_public_host(host, insecure or options.keys is not None)
    options = _with_absolute_paths(options)
    if options.keys:
        read_keys(options.keys)
    if options.webhook_secret:
        read_secret(options.webhook_secret)
    if options.access_log:
        _require_writable(options.access_log)
    for model in options.models:
        load_model(model, options.store)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _storage_of_jobs(options, port) as options, _connected() as own_ray:
        require_room(fit_to_cluster(options))
        port = _claim_port(host, port)
        if own_ray:
            serve.shutdown()  # there is nothing to end yet: it forgets the Serve of a former Ray of this process
        elif serve.status().proxies:
            raise ClusterError("Serve is in use on this cluster: stop it, or use `serve deploy serve/config.yaml`")
        try:
            _start(options, host, port)
            yield f"http://{_in_url(host)}:{port}"
        finally:
            _stop(own_ray)


def _require_writable(file: str) -> None:
    try:
        with open(file, "ab"):
            pass
    except OSError as error:
        raise ResourceError(f"{file}: cannot be written: {error.strerror or error}") from None


def refuse_public_host(host: str, guarded: bool) -> None:
    """Raises RecipeError for a host that others can reach, unless keys or the user's word guard it."""
    if guarded or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise RecipeError(
            f"--host {host} lets in everybody who can reach it: add --keys FILE (`ray-sr keys add`) or --insecure"
        )


def _start(options: ServiceOptions, host: str, port: int) -> None:
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=60),
            logging_config=quiet,
            controller_options={"runtime_env": {"env_vars": proxy.ENVIRONMENT}},
        )
        serve.run(build(options), name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise ClusterError(f"the service did not start: {_cause(error)}") from None


def _cause(error: RuntimeError) -> str:
    """Why a deployment failed: the last line of the replica's traceback, which Serve keeps in its status."""
    application = serve.status().applications.get(APPLICATION)
    reports = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line for report in [str(error), *reports] for line in report.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1].strip())


def _stop(own_ray: bool) -> None:
    """Lets the requests under way finish. A Ray of our own ends right after, and the rest of Serve with it."""
    if own_ray:
        serve.delete(APPLICATION)
    else:
        serve.shutdown()


@contextmanager
def _connected() -> Iterator[bool]:
    """Connected to Ray, as this process is already or for the time of the block; whether that Ray is our own."""
    if ray.is_initialized():
        yield False
        return
    connect()
    try:
        yield "RAY_ADDRESS" not in os.environ
    finally:
        disconnect()


def _with_absolute_paths(options: ServiceOptions) -> ServiceOptions:
    """The store and the model as a process in another folder and with another environment finds them."""
    model, *further = map(_absolute_model, options.models)
    store = Store(options.store).root
    if "://" not in store:
        store = str(Path(store).expanduser().absolute())
    files = {
        name: str(Path(path).absolute())
        for name in ("keys", "access_log", "webhook_secret")
        if (path := getattr(options, name))
    }
    return options.model_copy(update={"model": model, "further_models": tuple(further), "store": store, **files})


@contextmanager
def _storage_of_jobs(options: ServiceOptions, port: int) -> Iterator[ServiceOptions]:
    """The options with a place for the jobs: each port has its own, so that two services do not mix theirs.

    A service on any free port is not found again, so its jobs end with it.
    """
    if options.jobs is None and port == 0:
        with tempfile.TemporaryDirectory(prefix="ray-sr-jobs-", ignore_cleanup_errors=True) as folder:
            yield options.model_copy(update={"jobs": folder})
        return
    location = jobs_location(options, f"port-{port}")
    JobStorage(location)
    yield options.model_copy(update={"jobs": location})


def _absolute_model(model: str) -> str:
    path = Path(model)
    is_path = path.is_file() or (path / "model.json").is_file()
    return str(path.absolute()) if is_path else model


def _claim_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ClusterError where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        claimed: int = probe.getsockname()[1]
        return claimed


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
