"""`ray-sr tune`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ray_sr.commands.common import (
    is_verbose,
    json_option,
    note,
    overrides_argument,
    recipe_option,
    show,
    store_option,
)

if TYPE_CHECKING:
    from ray_sr.recipes.recipe import Recipe
    from ray_sr.tuning.folder import SweepFolder
    from ray_sr.tuning.results import Results
    from ray_sr.tuning.space import Space


@click.command()
@recipe_option(required=False)
@overrides_argument
@click.option("-s", "--space", "space_file", metavar="SPACE", help="YAML file with the fields to search and how.")
@click.option("--data", "shards", metavar="SHARDS", help="Shards of `ray-sr data prepare`.")
@click.option("-o", "--output", metavar="SWEEP", help="Folder of the sweep (default: sweeps/NAME-DATE).")
@click.option("--trials", type=int, metavar="N", help="At most this many trials, instead of the space's budget.")
@click.option("--time", "time_text", metavar="TIME", help="At most this long (15m, 2h), instead of the space's.")
@click.option(
    "--concurrent", type=click.IntRange(min=1), metavar="N", help="Trials at once (default: as many as fit)."
)
@click.option("--publish", metavar="CHANNEL", help="Publish the best generator and point CHANNEL at it.")
@click.option("--resume", is_flag=True, help="Continue the sweep in SWEEP; finished trials are kept.")
@store_option
@json_option
def tune(
    recipe_name: str | None,
    overrides: tuple[str, ...],
    space_file: str | None,
    shards: str | None,
    output: str | None,
    trials: int | None,
    time_text: str | None,
    concurrent: int | None,
    publish: str | None,
    resume: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Search recipe fields: train many variants of RECIPE, rank them, write the best one out as a recipe.

    Ctrl-C lets the trials save checkpoints and stops with exit code 130; --resume continues.
    """
    recipe, space, seconds = _checked(recipe_name, overrides, space_file, trials, time_text, resume, output)
    if publish:
        _check_store(store, publish)
    from ray_sr.cluster import connect

    _check_place(output, resume)
    if not as_json:
        note("connecting to Ray …")
    connect(verbose=is_verbose(), dashboard=True)
    from ray_sr.tuning.folder import SweepFolder
    from ray_sr.tuning.sweep import begin_sweep, change_budget, publish_best, run_sweep

    if resume:
        assert output
        sweep = SweepFolder.at(output)
        _check_same(sweep, recipe, space, shards)
        change_budget(sweep, trials=trials, seconds=seconds)
    else:
        assert recipe
        assert space
        sweep = SweepFolder.at(output or f"sweeps/{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}")
        begin_sweep(sweep, recipe, space, shards)
    results = run_sweep(sweep, concurrent=concurrent, quiet=as_json)
    published = None
    if publish:
        from ray_sr.store import Store

        published = publish_best(sweep, results, Store(store), publish).ref
    _show(sweep, results, published, publish, as_json)


def _checked(
    recipe_name: str | None,
    overrides: tuple[str, ...],
    space_file: str | None,
    trials: int | None,
    time_text: str | None,
    resume: bool,
    output: str | None,
) -> tuple[Recipe | None, Space | None, float | None]:
    """Recipe, space and seconds as far as they are given; what a new sweep must have and has not is refused."""
    from ray_sr.recipes.reader import load_recipe
    from ray_sr.tuning.space import parse_duration, read_space

    if resume and output is None:
        raise click.UsageError("--resume needs the folder of the sweep: -o SWEEP")
    if not resume and not (recipe_name and space_file):
        raise click.UsageError("a sweep needs a recipe and a space: -c RECIPE -s SPACE")
    if overrides and not recipe_name:
        raise click.UsageError("key=value changes a recipe: give it with -c RECIPE")
    try:
        seconds = parse_duration(time_text) if time_text is not None else None
    except ValueError as error:
        raise click.UsageError(f"--time: {error}") from None
    if trials is not None and trials < 1:
        raise click.UsageError(f"--trials {trials} is less than one trial")
    recipe = load_recipe(recipe_name, overrides) if recipe_name else None
    space = read_space(space_file, trials=trials, seconds=seconds) if space_file else None
    return recipe, space, seconds


def _check_store(store: str | None, channel: str) -> None:
    """Say now, not after hours of training, that the result cannot be published."""
    from ray_sr.errors import ModelError
    from ray_sr.store import Store
    from ray_sr.store.records import NAME_PATTERN

    place = Store(store)
    place.check_writable()
    if not re.fullmatch(NAME_PATTERN, channel) or channel in {record.name for record in place.list()}:
        raise ModelError(
            f"--publish {channel}: cannot name a channel: letters, digits, dots, - and _, and no model's name"
        )


def _check_place(output: str | None, resume: bool) -> None:
    """Say at once, before Ray starts, that there is no sweep to go on with, or that none can be written."""
    from ray_sr.storage import require_place, resolve_location

    place = resolve_location(output or "sweeps")
    if resume:
        from ray_sr.tuning.folder import SweepFolder

        SweepFolder.at(place).card()
    require_place(place)


def _check_same(sweep: SweepFolder, recipe: Recipe | None, space: Space | None, shards: str | None) -> None:
    """A sweep goes on with what it began with: another recipe, space or data given beside --resume is refused."""
    from ray_sr.errors import RecipeError
    from ray_sr.storage import resolve_location

    other = "leave it out, or begin another sweep with another -o"
    if recipe is not None and recipe != sweep.recipe():
        raise RecipeError(f"{sweep.path}: the sweep began with another recipe than -c gives: {other}")
    if shards is not None and resolve_location(shards) != sweep.card().shards:
        raise RecipeError(f"{sweep.path}: the sweep began with {sweep.card().shards}, not --data {shards}: {other}")
    begun = sweep.space()
    if space is not None and space.model_copy(update={"budget": begun.budget}) != begun:
        raise RecipeError(f"{sweep.path}: the sweep began with another space than -s gives: {other}")


def _show(sweep: SweepFolder, results: Results, published: str | None, channel: str | None, as_json: bool) -> None:
    from ray_sr.tuning.results import rows, text_table, why_best

    lines = [text_table(results), *(f"trial {o.number} failed: {o.reason}" for o in results.failed)]
    lines.append(f"best: {why_best(results)}")
    lines.append(f"in {sweep.path}: best.yaml (for `ray-sr train -c`), results.csv, .parquet, .txt, pictures")
    if published:
        lines.append(f"{published} published, {channel} means it now")
    result: dict[str, Any] = {
        "sweep": str(sweep.path),
        "trials": rows(results),
        "best": results.best.number if results.best else None,
        "best_recipe": str(sweep.path / "best.yaml") if results.best else None,
        "pareto": [outcome.number for outcome in results.front],
        "seconds": sweep.card().seconds,
        "published": published,
    }
    show(result, "\n".join(lines), as_json)
