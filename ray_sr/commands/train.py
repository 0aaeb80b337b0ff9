"""`ray-sr train` and `ray-sr report`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_sr.commands.common import (
    FiniteRange,
    connect_ray,
    json_option,
    note,
    overrides_argument,
    recipe_option,
    show,
)

if TYPE_CHECKING:
    from ray_sr.recipes.recipe import Recipe


@click.command()
@recipe_option()
@overrides_argument
@click.option("--data", "shards", metavar="SHARDS", help="Shards of `ray-sr data prepare`.")
@click.option("--init", metavar="MODEL", help="Start from this model (name, folder or file of weights) and keep "
              "its network and scale.")  # fmt: skip
@click.option("-o", "--output", metavar="RUN", help="Folder of the run (default: runs/NAME-DATE).")
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint in RUN.")
@click.option("--continue", "or_begin", is_flag=True, help="Continue if RUN has a checkpoint, else start.")
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Run 50 steps of each stage and estimate time and memory of the whole run.",
)
@click.option(
    "--hourly", type=FiniteRange(0), metavar="PRICE", help="With --plan: price of a GPU (or CPU worker) per hour."
)
@json_option
def train(
    recipe_name: str,
    overrides: tuple[str, ...],
    shards: str | None,
    init: str | None,
    output: str | None,
    resume: bool,
    or_begin: bool,
    only_plan: bool,
    hourly: float | None,
    as_json: bool,
) -> None:
    """Train RECIPE, both stages, with key=value overrides (data.batch=32 gan.steps=50000).

    Ctrl-C saves a checkpoint and stops with exit code 130; --resume continues.
    """
    from ray_sr.recipes.reader import load_recipe

    if init is not None:
        from ray_sr.training.warm_start import network_of

        overrides = (*network_of(init), *overrides)
    recipe = load_recipe(recipe_name, overrides)
    if (resume or or_begin) and output is None:
        raise click.UsageError("--resume and --continue need the folder of the run: -o RUN")
    if only_plan:
        _plan(recipe, shards, hourly, as_json)
        return
    folder = output or f"runs/{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    _check_places(recipe, shards, folder)
    connect_ray()
    from ray_sr.training.launch import train as launch
    from ray_sr.training.progress import TrainingProgress
    from ray_sr.training.runs import Run

    run = Run.at(folder)
    resume = resume or (or_begin and run.checkpoint() is not None)
    if resume:
        _say_changes(Run.existing(folder).recipe().dump(), recipe.dump())
    with TrainingProgress(recipe, quiet=as_json) as progress:
        trained = launch(recipe, run, shards=shards, resume=resume, listen=progress.hear)
    generator = str(run.generator())
    text = f"{run.place}: {trained.step} steps done"
    if "psnr_y" in trained.metrics:
        gain = trained.metrics["psnr_y"] - trained.metrics["bicubic_psnr_y"]
        text += f", PSNR-Y {trained.metrics['psnr_y']:.2f} dB on the held-out photos ({gain:+.2f} dB to bicubic)"
    result = {"run": run.place, "step": trained.step, "metrics": trained.metrics, "generator": generator}
    show(result, f"{text}\ngenerator: {generator}", as_json)


def _check_places(recipe: Recipe, shards: str | None, folder: str) -> None:
    """Say at once, before Ray starts, that the shards cannot be read or the run cannot be written."""
    from ray_sr.data.manifest import read_manifest
    from ray_sr.storage import require_place, resolve_location

    if data := shards or recipe.data.shards:
        read_manifest(resolve_location(data))
    require_place(resolve_location(folder))


@click.command()
@click.option("-o", "--output", default="demo", show_default=True, metavar="FOLDER", help="Where everything goes.")
def demo(output: str) -> None:
    """The whole product once, small: train on scikit-image's photographs, evaluate, publish, serve, report."""
    from ray_sr.commands.common import is_verbose
    from ray_sr.demo import run_demo

    click.echo(run_demo(Path(output).absolute(), verbose=is_verbose()))


@click.command()
@click.argument("run")
@click.option("-o", "--output", metavar="HTML", help="File to write (default: RUN/report.html).")
def report(run: str, output: str | None) -> None:
    """One HTML page of a run: curves, pictures, recipe, versions; also while it is running."""
    from ray_sr.publishing.report import write_report
    from ray_sr.training.runs import Run

    click.echo(write_report(Run.existing(run), Path(output) if output else None))


def _plan(recipe: Recipe, shards: str | None, hourly: float | None, as_json: bool) -> None:
    from ray_sr.training.planning import STEPS, plan

    connect_ray()
    note(f"running {STEPS} steps of each stage")
    found = plan(recipe, shards=shards, hourly=hourly)
    show({**asdict(found), "seconds": found.seconds, "cost": found.cost}, str(found), as_json)


def _say_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Name what a resumed run does otherwise than it began: the recipe given now wins."""
    for key, (old, new) in sorted(_differences(before, now).items()):
        note(f"resuming with {key}={new} (was {old})")


def _differences(before: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in before.keys() | now.keys():
            found |= _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if before == now else {prefix: (before, now)}
