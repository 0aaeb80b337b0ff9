"""The shape of the house: floors that import only what stands below them, small functions, small modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_sr"

# From the ground up: a module imports only its own floor and those below.
FLOORS = [
    {"errors", "storage", "file_lock", "progress"},
    {"recipe", "recipe_networks", "recipe_checks", "recipe_reader", "recipe_reference"},
    {"images", "image_headers", "image_metadata", "image_savers", "image_streams", "resample", "sharpening"},
    {"losses", "features", "degradations", "models", "metrics", "lpips"},
    {"data", "photo_pairs", "model_store", "model_card", "upscaling"},
    {"training", "evaluation", "pictures", "archive"},
    {"report", "report_notes", "charts", "publishing", "training_curves"},
    {"tuning", "serving", "client", "benchmarks"},
    {"cluster", "demo", "jobs", "spot"},
    {"commands", "cli"},
]
# Connecting to Ray needs nothing of ours and is used by whoever starts something.
ANYWHERE = {"cluster"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ray_sr."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ray_sr.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    above = {name for name in imported_parts(path) - ANYWHERE if floor_of(name) > floor_of(part)}
    assert not above, f"{part} imports {above}, which stand above it"


@pytest.mark.parametrize(
    "path",
    [*modules(), *(ROOT / "jobs").glob("*.py"), *(ROOT / "serve").glob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_functions_and_modules_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{node.name} is longer than 80 lines"


def test_ray_is_wired_in_at_the_edges_only() -> None:
    """Models, losses, degradations, metrics and the upscaling engine know nothing of Ray."""
    without = {
        "models",
        "losses",
        "features",
        "degradations",
        "metrics",
        "upscaling",
        "images",
        "resample",
        "recipe",
    }
    for path in modules():
        if part_of(path) not in without:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name == "ray" or name.startswith("ray.") for name in names), path
