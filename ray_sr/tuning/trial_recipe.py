"""Space and recipe together: a trial's recipe, and the check of a whole space before any trial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from ray_sr.errors import RecipeError
from ray_sr.recipes.reader import did_you_mean, parse_recipe, recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.tuning.space import Space, Values


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these fields set. Raises RecipeError as the recipe reader does."""
    overrides = [f"{name}={_flow(value)}" for name, value in values.items()]
    return parse_recipe(recipe_yaml(recipe), overrides, source=recipe.name)


def trial_recipe(recipe: Recipe, values: Values) -> Recipe:
    """What a trial trains: these values, and log lines and checkpoints as often as a sweep needs them.

    A trial is asked at its log lines whether it is to stop, so they are at most a tenth of a validation apart;
    a checkpoint at each validation is what an interrupted sweep goes on from. Neither changes the weights.
    """
    found = with_values(recipe, values)
    every, training = found.validation.every, found.training
    changes = {
        "log_every": min(training.log_every, max(1, every // 10)),
        "checkpoint_every": min(training.checkpoint_every, every),
    }
    return found.model_copy(update={"training": training.model_copy(update=changes)})


def check_space(space: Space, recipe: Recipe) -> None:
    """Refuse a space that does not fit the recipe, before any trial. RecipeError, one line for each error.

    Tries the ends of every range and every value of every list, alone, then every trial that is planned.
    """
    if unknown := list(_unknown_fields(space, recipe)):
        raise RecipeError("\n".join(unknown))
    problems: list[str] = []
    for name, domain in space.fields.items():
        for value in domain.extremes():
            problems += _problems(recipe, {name: value})
    if not problems and space.searcher != "optuna":
        for values in space.plan():
            problems += _problems(recipe, values)
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    _check_validations(space, recipe)


def _problems(recipe: Recipe, values: Values) -> list[str]:
    given = ", ".join(f"{name}={_flow(value)}" for name, value in values.items())
    try:
        found = with_values(recipe, values)
    except RecipeError as error:
        return [line if "[override" in line else f"{line} (with {given})" for line in str(error).splitlines()]
    if _measured_on(found) != _measured_on(recipe):
        return [
            f"{next(iter(values))}: with {given} trials would be measured on other pictures: take it out of fields"
        ]
    return []


def _measured_on(recipe: Recipe) -> Any:
    """What trials are compared by: the held-out photos and how they are made small. Equal in all of a sweep."""
    steps = recipe.dump()["degradation"]
    drawn = [step for step in steps if step["kind"] not in ("pairs", "downscale")]
    return recipe.scale, steps, recipe.validation.photos, recipe.data.shards, recipe.seed if drawn else None


def _unknown_fields(space: Space, recipe: Recipe) -> Iterator[str]:
    """A sentence for each field that the recipe, with all defaults written out, does not have."""
    for name in space.fields:
        here: Any = recipe.dump()
        parts = name.split(".")
        for index, part in enumerate(parts):
            known = _parts(here)
            if part in known:
                here = here[part] if isinstance(here, dict) else here[int(part)]
                continue
            where = ".".join(parts[:index])
            if here is None:
                yield f"fields.{name}: the recipe {recipe.name} has no {where}: give it one, or remove the field"
            elif not known:
                yield f"fields.{name}: {where} is a single value: name that"
            else:
                yield (
                    f"fields.{name}: {where or 'the recipe'} has no {part!r}{did_you_mean(part, known)} "
                    f"({', '.join(known)})"
                )
            break


def _parts(value: Any) -> list[str]:
    """The keys inside a value of a recipe, those of a list being its positions."""
    if isinstance(value, dict):
        return list(value)
    return [str(position) for position in range(len(value))] if isinstance(value, list) else []


def _check_validations(space: Space, recipe: Recipe) -> None:
    """Trials are compared at their validations: there must be some, and for a scheduler before the end."""
    if not recipe.validation.photos:
        raise RecipeError("validation.photos is 0: trials are compared by PSNR on held-out photos, give some")
    every, steps = recipe.validation.every, recipe.total_steps
    if space.scheduler.kind != "none" and every >= steps:
        raise RecipeError(
            f"scheduler {space.scheduler.kind} decides at validations, but validation.every {every} leaves none "
            f"before the last step {steps}: add validation.every={max(1, steps // 8)}"
        )
    for name in ("grace", "interval"):
        asked = getattr(space.scheduler, name)
        if asked is not None and asked >= steps:
            raise RecipeError(f"scheduler.{name} {asked} is not before the last step {steps}: lower it")


def _flow(value: Any) -> str:
    """The value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
