"""The model card: what a published model is, as Markdown for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ray_sr.errors import ModelError
from ray_sr.store.records import NAME_PATTERN, Metrics, ModelRecord


def write_card(record: ModelRecord) -> str:
    """The model card: Markdown with network, metrics, provenance, pictures, notes and how to use it."""
    parts = [f"# {record.name}", *_summary(record), *_metrics(record.metrics), *_provenance(record)]
    if record.pictures:
        parts += ["## Pictures", *(f"![{_cell(name)}](pictures/{name})" for name in record.pictures)]
    if record.notes:
        parts.append(record.notes.strip())
    use = f"    ray-sr upscale photo.jpg -o larger.png -n {record.ref}\n    ray-sr serve -n {record.ref}"
    return "\n\n".join([*parts, "## Use", use]) + "\n"


def _summary(record: ModelRecord) -> list[str]:
    generator = record.network.generator.model_dump()
    options = ", ".join(f"{key} {value}" for key, value in generator.items() if key != "kind")
    rows = {
        "Version": f"`{record.version}`",
        "Published": record.date,
        "Network": f"{generator['kind']} ({options})",
        "Scale": f"x{record.network.scale}",
        "Parameters and statistics": f"{record.parameters:,}",
    }
    description = (record.recipe or {}).get("description")
    return [*([_cell(description)] if description else []), _table(("", ""), rows.items())]


def _metrics(metrics: list[Metrics]) -> list[str]:
    if not metrics:
        return ["## Metrics", "None were measured."]
    tables = []
    for measured in metrics:
        rows = [(key, f"{value:.4f}") for key, value in measured.values.items()]
        tables += [f"Protocol: {_cell(measured.protocol)}", _table(("Metric", "Value"), rows)]
    return ["## Metrics", *tables]


def _provenance(record: ModelRecord) -> list[str]:
    origin = record.provenance
    rows = {
        "Source": origin.source,
        "Licence": origin.licence,
        "Started from": origin.parent,
        "Data manifest": origin.data_manifest,
        "Steps": origin.steps,
        "Recipe": "recipe.yaml" if record.recipe else None,
        "sha256 of the weights": record.sha256,
        "Made with": ", ".join(f"{package} {number}" for package, number in origin.versions.items()),
    }
    known = [(key, value) for key, value in rows.items() if value is not None]
    return ["## Provenance", _table(("", ""), known)]


def picture_name(name: str) -> str:
    """The name, if a picture of a card may have it. Raises ModelError."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ModelError(f"{name!r} cannot name a picture of a model card")
    return name


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)])


def _cell(value: object) -> str:
    """Text that stays inside its table cell and line."""
    return " ".join(str(value).split()).replace("|", "\\|")
