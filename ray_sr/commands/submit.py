"""`ray-sr submit`: the other commands as jobs on a cluster."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sr.commands.common import FiniteRange, note
from ray_sr.commands.data import prepare
from ray_sr.commands.evaluate import evaluate
from ray_sr.commands.models import publish
from ray_sr.commands.train import train
from ray_sr.commands.tune import tune
from ray_sr.commands.upscale import upscale
from ray_sr.errors import ClusterError

if TYPE_CHECKING:
    from ray_sr.cluster.jobs import JobServer


@dataclass(frozen=True)
class _Entry:
    """A command as a job: its words, and whether its own process computes, so that it needs a node with CPUs."""

    command: click.Command
    words: tuple[str, ...]
    computes: bool = False


ENTRIES = {
    "prepare": _Entry(prepare, ("data", "prepare")),
    "train": _Entry(train, ("train",)),
    "evaluate": _Entry(evaluate, ("evaluate",), computes=True),
    "upscale": _Entry(upscale, ("upscale", "--ray")),
    "publish": _Entry(publish, ("models", "publish")),
    "sweep": _Entry(tune, ("tune",)),
}


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("job", type=click.Choice(list(ENTRIES)), required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
@click.option(
    "--address", metavar="URL", help="Job server (default: $RAY_API_SERVER_ADDRESS, else this machine's)."
)
@click.option("--id", "name", metavar="NAME", help="Id of the job (default: generated).")
@click.option("--no-wait", is_flag=True, help="Return once the job has started.")
@click.option(
    "--cpus",
    type=FiniteRange(0),
    help="CPUs reserved for the job's own process, which may then run on any node.",
)
@click.option("--gpus", type=FiniteRange(0), help="The same for GPUs.")
@click.option("--follow", metavar="ID", help="Instead: follow a job that was submitted before.")
def submit(
    job: str | None,
    arguments: tuple[str, ...],
    address: str | None,
    name: str | None,
    no_wait: bool,
    cpus: float | None,
    gpus: float | None,
    follow: str | None,
) -> int:
    """Run JOB on a cluster with the ARGUMENTS of its command, follow its log, exit with its exit code.

    Jobs: prepare (`ray-sr data prepare`), train, evaluate, upscale (with --ray), publish (`models publish`),
    sweep (`tune`). Recipes and search spaces are checked here and uploaded; all other paths are paths on the
    cluster. Options of `submit` itself come before JOB. Ctrl-C leaves the job running and says how to find it.
    """
    if (job is None) == (follow is None):
        raise click.UsageError("give a JOB (train, prepare, …) or --follow ID")
    if job is None:
        return _follow(_job_server(address), str(follow))
    entry = ENTRIES[job]
    files = _check(entry, arguments)
    server = _job_server(address)
    from ray_sr.cluster.jobs import RayJob

    task = RayJob((*entry.words, *arguments), files, name=name, cpus=float(entry.computes))
    if entry.computes and any("cuda" in word for word in arguments):
        task = replace(task, gpus=1.0)
    task = replace(task, cpus=task.cpus if cpus is None else cpus, gpus=task.gpus if gpus is None else gpus)
    job_id = server.submit(task)
    note(f"job {job_id} on {server.address}")
    if no_wait:
        click.echo(job_id)
        return 0
    return _follow(server, job_id)


def _check(entry: _Entry, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Local YAML files among the arguments. Refuses here what the job would refuse on the cluster."""
    context = entry.command.make_context(" ".join(("ray-sr", *entry.words)), list(arguments))
    values: dict[str, Any] = context.params
    checks: dict[str, Callable[[str], object]] = {}
    if values.get("recipe_name"):
        from ray_sr.recipes.reader import load_recipe

        checks["recipe_name"] = lambda file: load_recipe(file, values["overrides"])
    if values.get("space_file"):
        from ray_sr.tuning.space import read_space

        checks["space_file"] = lambda file: read_space(file, trials=values["trials"], seconds=None)
    for key, check in checks.items():
        if stat.S_ISFIFO(_mode(values[key])):
            raise click.UsageError(f"{values[key]}: a pipe cannot be sent along with a job: give a file")
        check(values[key])
    return tuple(file for key in checks if Path(file := values[key]).is_file())


def _mode(file: str) -> int:
    """What kind of file it is; 0 where there is none."""
    try:
        return os.stat(file).st_mode
    except (OSError, ValueError):
        return 0


def _job_server(address: str | None) -> JobServer:
    from ray_sr.cluster import use_token

    use_token()
    try:
        from ray_sr.cluster.jobs import JobServer
    except ImportError as error:
        raise ClusterError(f"jobs need Ray's job client: pip install 'ray[default]' ({error})") from None
    return JobServer(address)


def _follow(server: JobServer, job_id: str) -> int:
    try:
        return server.follow(job_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        note(
            f"\njob {job_id} goes on without you. Follow it: ray-sr submit --follow {job_id}; "
            f"stop it, with a checkpoint: ray job stop {job_id}"
        )
        raise
