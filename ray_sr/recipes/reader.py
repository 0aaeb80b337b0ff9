"""Reads recipes: YAML and `key=value` overrides in, a checked Recipe or all errors with their lines out.

`parse_section` does the same for any other file of YAML that a Section describes, such as a search space.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ray_sr.errors import InputError, ModelError, RecipeError
from ray_sr.recipes import architectures
from ray_sr.recipes.networks import CHECK_ARCHITECTURES, SpandrelSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.section import Section

Key = str | int
KeyPath = tuple[Key, ...]
S = TypeVar("S", bound=Section)

_LIBRARY = resources.files("ray_sr") / "recipes" / "library"
LONGEST_SHOWN = 100  # characters of a wrong value
_MOST_VALUES = 100_000  # of a file with its aliases written out


def recipe_names() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _LIBRARY.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name or file, with `key=value` overrides applied (`gan.losses.0.weight=2`).

    Raises RecipeError with one line for each error: the key, what is wrong, and the file's line or the
    override it comes from; InputError where there is no such recipe.
    """
    source, text = _find(name_or_file)
    return parse_recipe(text, overrides, source=source)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """The recipe written in this YAML text; `source` names it in errors."""
    return parse_section(Recipe, text, overrides, source=source, what="a recipe")


def parse_section(
    model: type[S],
    text: str,
    overrides: Sequence[str] = (),
    *,
    source: str,
    what: str,
    options: Mapping[str, str] | None = None,
) -> S:
    """The section that this YAML text describes, with `key=value` overrides applied.

    `what` calls it by its kind in errors ("a recipe"), `source` by its file. `options`: names of command-line
    options by the override that each gives, for errors to name them. Raises RecipeError, one line for each error:
    the key, what is wrong, and the line, override or option that it comes from; a key given twice is one.
    """
    data, lines = _parse_yaml(text, source, what)
    origins: dict[KeyPath, str] = {path: f"{source}:{line}" for path, line in lines.items()}
    for override in overrides:
        path = _apply_override(data, override)
        origins = {known: place for known, place in origins.items() if known[: len(path)] != path}
        origins[path] = (options or {}).get(override, f"override {_cut(override)}")
    try:
        made = model.model_validate(data, context={CHECK_ARCHITECTURES: True})
    except ValidationError as problem:
        found = [line for error in problem.errors() for line in _messages(error, data, origins, source, model)]
        raise RecipeError("\n".join(dict.fromkeys(found))) from None
    if isinstance(made, Recipe) and isinstance(made.generator, SpandrelSpec):
        _check_built(made.generator, made.scale, _place(("generator",), origins, source))
    return made


def _check_built(generator: SpandrelSpec, scale: int, place: str) -> None:
    """RecipeError where options that are right one by one make no network together, or none of this scale."""
    try:
        architectures.check_built(generator.architecture, json.dumps(generator.options), scale)
    except ModelError as error:
        raise RecipeError(f"generator: {error} [{place}]") from None


def recipe_yaml(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'blocks'?` where a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def _find(name_or_file: str) -> tuple[str, str]:
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file() or path.is_fifo():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InputError(f"recipe {name_or_file}: {reason}") from None
    if name_or_file not in (names := recipe_names()):
        hint = did_you_mean(name_or_file, names) or ", `ray-sr recipes list` shows them"
        raise InputError(f"no recipe called {name_or_file!r}{hint}")
    return f"{name_or_file}.yaml", (_LIBRARY / f"{name_or_file}.yaml").read_text("utf-8")


def _parse_yaml(text: str, source: str, what: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {}
        _note_lines(node, (), lines, source, inside=())
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"not YAML: {problem} [{place}]") from None
    except RecursionError:
        raise RecipeError(f"nested more deeply than any {what.removeprefix('a ')} is [{source}]") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise RecipeError(f"{what} is a mapping of keys to values, this is a {type(data).__name__} [{source}]")
    return data, lines


def _note_lines(
    node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], source: str, inside: tuple[yaml.Node, ...]
) -> None:
    if node and any(node is other for other in inside):
        raise RecipeError(f"{_dotted(path)}: an alias within what it stands for [{source}:{lines[path]}]")
    if len(lines) > _MOST_VALUES:
        raise RecipeError(f"more than {_MOST_VALUES:,} values, with its aliases written out [{source}]")
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            child = (*path, str(key_node.value))
            if child in lines:
                place = f"{source}:{key_node.start_mark.line + 1}"
                raise RecipeError(f"{_dotted(child)}: given twice, first in line {lines[child]} [{place}]")
            lines[child] = key_node.start_mark.line + 1
            _note_lines(value, child, lines, source, (*inside, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _note_lines(value, (*path, index), lines, source, (*inside, node))


def _apply_override(data: dict[str, Any], override: str) -> KeyPath:
    key, separator, value = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"override {override!r} is not key=value, such as data.batch=32")
    path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise RecipeError(f"override {_shortened(override)}: {_shortened(value)} is not a YAML value") from None
    here: Any = data
    for part in path[:-1]:
        here = _step_into(here, part, override)
    _assign(here, path[-1], parsed, override)
    return path


def _step_into(here: Any, part: Key, override: str) -> Any:
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    if isinstance(here, dict) and isinstance(part, str):
        if not isinstance(here.get(part), (dict, list)):
            here[part] = {}
        return here[part]
    raise RecipeError(f"override {override!r}: there is nothing at {part!r}")


def _assign(here: Any, part: Key, value: Any, override: str) -> None:
    if isinstance(here, list) and isinstance(part, int) and part <= len(here):
        here[part : part + 1] = [value]
    elif isinstance(here, dict) and isinstance(part, str):
        here[part] = value
    else:
        raise RecipeError(f"override {override!r}: there is nothing at {part!r}")


def _messages(
    error: ErrorDetails, data: dict[str, Any], origins: dict[KeyPath, str], source: str, root: type[BaseModel]
) -> list[str]:
    path = _written_path(error, data)
    key = f"{_dotted(path)}: " if path else ""
    return [f"{key}{line} [{_place(path, origins, source)}]" for line in _explain(error, path, root).splitlines()]


def _place(path: KeyPath, origins: dict[KeyPath, str], source: str) -> str:
    """Where the key at this path was written: itself, or something inside it, or the nearest around it."""
    if not path:
        return source
    inside = [known for known in origins if known[: len(path)] == path]
    around = [path[:n] for n in range(len(path) - 1, 0, -1) if path[:n] in origins]
    return next((origins[known] for known in [*sorted(inside, key=len), *around]), source)


def _written_path(error: ErrorDetails, data: Any) -> KeyPath:
    """The error's location in the YAML: pydantic's own also names the member of each union."""
    path: list[Key] = []
    here: Any = data
    for index, part in enumerate(error["loc"]):
        is_last = index == len(error["loc"]) - 1
        present = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if present:
            here = here[part]
            path.append(part)
        elif is_last and error["type"] == "missing":
            path.append(part)
    return tuple(path)


def _explain(error: ErrorDetails, path: KeyPath, root: type[BaseModel]) -> str:
    kind, context, given = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(path[-1]), _keys_at(root, error['loc'][:-1]))}"
    if kind == "missing":
        return "required, but not given"
    if kind == "union_tag_not_found":
        return f"say which kind: {_kinds_at(root, error['loc'])}"
    if kind == "union_tag_invalid":
        hint = did_you_mean(str(context["tag"]), context["expected_tags"].replace("'", "").split(", "))
        return f"no kind {context['tag']!r}{hint} (kinds: {context['expected_tags']})"
    if kind == "value_error":
        return str(context["error"])
    text = error["msg"].replace("Input should be", "should be")
    if kind == "literal_error" and isinstance(given, str):
        text += did_you_mean(given, context["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    return text if isinstance(given, (dict, list)) else f"{text} (got {_shortened(given)})"


def _shortened(value: Any) -> str:
    """As it is written in Python; of a long text its begin."""
    return _cut(repr(value[: LONGEST_SHOWN + 1] if isinstance(value, str) else value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _models_at(root: type[BaseModel], location: Sequence[Key]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [root]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
        elif isinstance(part, str):
            models = [model for model in models if part in get_args(model.model_fields["kind"].annotation)]
    return models


def _keys_at(root: type[BaseModel], location: Sequence[Key]) -> set[str]:
    return {key for model in _models_at(root, location) for key in model.model_fields}


def _kinds_at(root: type[BaseModel], location: Sequence[Key]) -> str:
    kinds = [
        kind for model in _models_at(root, location) for kind in get_args(model.model_fields["kind"].annotation)
    ]
    return ", ".join(kinds)


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
