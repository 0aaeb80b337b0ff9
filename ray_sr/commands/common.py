"""What the commands share: their options, and results on stdout as text or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ray_sr.commands.process import end_by_exception
from ray_sr.errors import visible

BEST_X2 = "best-x2"  # a channel of the store that comes with ray-sr

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FiniteRange(click.FloatRange):
    """A number in a range; click's own lets `nan` and `inf` pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def recipe_option(required: bool = True) -> Decorator:
    text = "Recipe: a name from `ray-sr recipes list`, or a YAML file."
    return click.option("-c", "--recipe", "recipe_name", required=required, metavar="RECIPE", help=text)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Model store (default: $RAY_SR_STORE, $RAY_SR_STORAGE/models or ~/.ray-sr/models)."
    return click.option("--store", metavar="STORE", help=text)(command)


def overrides_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)


def place(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of options that name shards, a run or a sweep: where that lies."""
    from ray_sr.storage import resolve_location

    return None if value is None else resolve_location(value)


def show(result: dict[str, Any] | list[dict[str, Any]], text: str, as_json: bool) -> None:
    """The result of a command on stdout."""
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def note(text: str) -> None:
    """A line for people on stderr, or a few."""
    click.echo("\n".join(map(visible, text.split("\n"))), err=True)


def is_verbose() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("verbose"))


def connect_ray() -> None:
    from ray_sr.cluster import connect

    if sys.stderr.isatty() or is_verbose():
        note("connecting to Ray …")
    connect(verbose=is_verbose())
    end_by_exception()


def chosen_model(model: str | None, store: str | None, scale: float | None = None) -> str:
    """The MODEL to load: a run's folder stands for its last generator.

    None for `best`, else the newest. Where nothing is published it is the best that comes with ray-sr, at x2 for
    scales up to 2.
    """
    from ray_sr.errors import ModelError
    from ray_sr.store import Store
    from ray_sr.store.store import SHIPPED

    if model is not None:
        if "/" not in model and not Path(model).is_dir():
            return model  # a name, which needs nothing of what runs are read by
        from ray_sr.training.runs import generator_of_run

        return generator_of_run(model) or model
    place = Store(store)
    records = place.list()
    if "best" in place.channels():
        return "best"
    if records:
        return records[0].ref
    shipped = Store(SHIPPED).channels()
    if scale is not None and scale <= 2 and BEST_X2 in shipped:
        return BEST_X2
    if "best" not in shipped:
        raise ModelError(f"no model in {place.root}: `ray-sr models publish RUN`, or name one with -n (bicubic)")
    return "best"
