"""The reference page of recipes, made from the classes and field descriptions of `recipe`."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_sr.recipes.recipe import Recipe

_PLAIN = {"str": "text", "int": "integer", "float": "number", "bool": "true, false", "Any": "any value"}
_SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def reference_page() -> str:
    """Markdown: a table of fields for the recipe and for each part of it, in the order of first mention."""
    parts = ["# Recipe reference", "", "Made from the field descriptions in `ray_sr/recipes/`."]
    waiting: list[type[BaseModel]] = [Recipe]
    seen: set[type[BaseModel]] = set()
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        parts += ["", *_section(model)]
        waiting[:0] = [inner for field in model.model_fields.values() for inner in _models(field.annotation)]
    return "\n".join(parts) + "\n"


def _section(model: type[BaseModel]) -> list[str]:
    kind = model.model_fields.get("kind")
    title = f"{model.__name__}" + (f": kind {_type(kind.annotation)}" if kind else "")
    rows = [
        f"| `{name}` | {_type(field.annotation)}{_bounds(field)} | {_default(field)} | {field.description or ''} |"
        for name, field in model.model_fields.items()
        if name != "kind"
    ]
    head = ["| field | type | default | meaning |", "|---|---|---|---|"] if rows else []
    return [f"## {title}", "", (model.__doc__ or "").strip(), "", *head, *rows]


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if part is type(None) else _type(part) for part in arguments)
    parts = [_type(part) for part in arguments]
    if origin is list:
        return f"list of {parts[0]}{'s' if parts[0] == _PLAIN['int'] else ''}"
    if origin is dict:
        return f"mapping of {parts[0]} to {parts[1]}"
    if origin is tuple:
        return ", ".join(parts)
    return _PLAIN[annotation.__name__]


def _bounds(field: FieldInfo) -> str:
    values = [
        f"{sign} {getattr(rule, kind.__name__.lower())}"
        for rule in field.metadata
        for kind, sign in _SIGNS.items()
        if isinstance(rule, kind)
    ]
    return f" ({', '.join(values)})" if values else ""


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return f"`{field.default.kind}`" if hasattr(field.default, "kind") else "its defaults"
    plain = field.default
    if isinstance(plain, list):
        plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in plain]
    return f"`{json.dumps(plain)}`" if plain is not None else "none"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
