"""`ray-sr recipes`: what can be trained, and whether a recipe of one's own is right."""

from __future__ import annotations

import json
from typing import Any

import click

from ray_sr.commands.common import json_option, overrides_argument, show


@click.group()
def recipes() -> None:
    """List, show and check recipes."""


@recipes.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names of the recipes that come with ray-sr, with what each is for."""
    from ray_sr.recipes.reader import load_recipe, recipe_names

    described = {name: load_recipe(name).description for name in recipe_names()}
    width = max(map(len, described))
    text = "\n".join(f"{name:{width}}  {description}" for name, description in described.items())
    show({"recipes": described}, text, as_json)


@recipes.command("show")
@click.argument("name")
@overrides_argument
@click.option("--networks", is_flag=True, help="Show the networks with their parameter counts instead.")
@json_option
def show_recipe(name: str, overrides: tuple[str, ...], networks: bool, as_json: bool) -> None:
    """The recipe NAME (or file) with every default written out, as YAML that can be edited and trained."""
    from ray_sr.recipes.reader import load_recipe, recipe_yaml

    recipe = load_recipe(name, overrides)
    if not networks:
        show(recipe.dump(), recipe_yaml(recipe).rstrip(), as_json)
        return
    from ray_sr.models import build_discriminator, build_generator, count_parameters

    counts: dict[str, Any] = {"generator": count_parameters(build_generator(recipe.network))}
    if recipe.discriminator:
        critic = build_discriminator(recipe.discriminator, recipe.data.crop, recipe.value_range)
        counts["discriminator"] = count_parameters(critic)
    lines = [
        f"{part:13}  {getattr(recipe, part).kind:12}  {count['parameters']:>11,} parameters: "
        f"{count['trainable']:,} trainable, {count['buffers']:,} buffers"
        for part, count in counts.items()
    ]
    show(counts, "\n".join(lines), as_json)


@recipes.command("architectures")
@json_option
def list_architectures(as_json: bool) -> None:
    """Networks of generator kind spandrel: what the installed library has, with options and scales."""
    from ray_sr.recipes.architectures import LICENCE, architectures

    found: list[dict[str, Any]] = [
        {"name": each.name, "options": each.options, "scales": list(each.scales), "licence": LICENCE}
        for each in architectures().values()
    ]
    lines = [
        f"{each.name:15} {' '.join(f'x{scale}' for scale in each.scales):14}  "
        + ", ".join(f"{name}={json.dumps(value)}" for name, value in each.options.items())
        for each in architectures().values()
    ]
    note = f"Licence of their code: {LICENCE}."
    show(found, "\n".join([*lines, note]), as_json)


@recipes.command("check")
@click.argument("file")
@overrides_argument
def check_recipe(file: str, overrides: tuple[str, ...]) -> None:
    """Check a recipe: all errors at once, each with its line; then the teachers that it names."""
    from ray_sr.recipes.reader import load_recipe
    from ray_sr.training.teachers import check_teachers

    recipe = load_recipe(file, overrides)
    check_teachers(recipe)
    click.echo(f"{file}: right ({recipe.generator.kind} x{recipe.scale}, {recipe.total_steps:,} steps)")


@recipes.command("schema")
def schema() -> None:
    """The JSON schema of recipes, for editors that complete and check YAML."""
    from ray_sr.recipes.recipe import Recipe

    click.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@recipes.command("reference")
def reference() -> None:
    """Every field of a recipe with its type, default and meaning, as Markdown."""
    from ray_sr.recipes.reference import reference_page

    click.echo(reference_page(), nl=False)
