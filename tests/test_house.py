"""The shape of the house: floors that import only what stands below them, small functions, small modules."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_sr"

# From the ground up: a module imports only its own floor and those below.
FLOORS = [
    {"errors", "progress", "signals"},
    {"storage", "recipes", "images"},
    {"losses", "perceptual", "degradations", "models", "metrics"},
    {"data", "store", "upscaling"},
    {"training", "evaluation", "video"},
    {"publishing"},
    {"tuning", "serving", "client", "bench"},
    {"cluster", "demo", "api"},
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
    """Models, losses, degradations, metrics, images and the upscaling engine know nothing of Ray."""
    without = {"models", "losses", "perceptual", "degradations", "metrics", "upscaling", "images", "recipes"}
    edges = {PACKAGE / "upscaling" / "on_ray.py"}
    for path in modules():
        if part_of(path) not in without or path in edges:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name == "ray" or name.startswith("ray.") for name in names), path


def imported_modules(path: Path) -> set[Path]:
    """The files of ours that a file imports when it is imported itself, or for its types, or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ray_sr":
            files = [file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names]
            found |= {file for file in files if file}
        elif isinstance(node, ast.Import):
            found |= {file for alias in node.names if (file := file_of(alias.name))}
    return found - {PACKAGE / "__init__.py"}


def file_of(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_files_import_each_other_in_no_circle() -> None:
    """A package's face (`__init__`) stands for what it re-exports: its own files do not import it."""
    graph = {
        str(path.relative_to(PACKAGE)): {str(file.relative_to(PACKAGE)) for file in imported_modules(path)}
        for path in modules()
    }
    assert not circles(graph)


def test_packages_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        part = part_of(path)
        graph.setdefault(part, set()).update(imported_parts(path) - {part})
    # Who starts something connects to Ray, which imports nothing back: only its jobs and notices stand above.
    connecting = imported_parts(PACKAGE / "cluster" / "connect.py")
    assert connecting <= {"errors", "storage"}
    graph["cluster"] = connecting
    assert not circles(graph)


@pytest.mark.parametrize("graph", [{"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}])
def test_circles_are_found(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == [sorted(set(graph) - {"d"})]
    assert not circles({"a": {"b", "c"}, "b": {"c"}})
