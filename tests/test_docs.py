"""The pages lead where they say: links, files, commands, and the names on the walks of docs/design.md."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ray_sr import errors
from ray_sr.cli import cli
from ray_sr.commands.submit import ENTRIES, submit
from ray_sr.errors import RaySRError
from ray_sr.recipes.reader import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
RECIPES = {file.stem for file in (ROOT / "ray_sr" / "recipes" / "library").glob("*.yaml")}
WALKS = {
    "ray_sr/degradations/__init__.py": ["def degrade(", "def _apply("],
    "ray_sr/degradations/resizing.py": ["def shrink("],
    "ray_sr/images/resample.py": ["def downscale("],
    "ray_sr/training/steps.py": ["class GanStep", "def _pull_generator(", "self.adversarial.generator_loss("],
    "ray_sr/losses.py": ["class AdversarialLoss", "def generator_loss(", "def real_loss(", "def fake_loss("],
    "ray_sr/serving/admission.py": ["class AdmissionQueue", "def place(", 'Problem("overloaded"'],
    "ray_sr/serving/problems.py": ['"overloaded": (503'],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not absent


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index]


@pytest.mark.parametrize("file", WALKS)
def test_the_walks_of_the_design_lead_there(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert not [name for name in WALKS[file] if name not in text]
    assert Path(file).name in (ROOT / "docs" / "design.md").read_text("utf-8")


def command_lines(text: str, blocks: bool = True) -> Iterator[tuple[str, bool]]:
    """Every `ray-sr …` of a page, or of messages in code (no blocks); whether it is one of a block: complete."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        if blocks and (fenced or line.startswith("    ")):
            yield from ((found, True) for found in re.findall(r"(?:^|[;|&$(]|^\S.*:) *(ray-sr\s.*)", line.strip()))
        yield from ((found, False) for found in re.findall(r"`(ray-sr [^`]+)`", line.replace('\\"', "'")))


def words_of(line: str) -> list[str]:
    """As a shell reads it, up to a comment, another command or a wide gap; what is in brackets counts as given."""
    line = re.split(r"\s+#|\s{3,}|\s[&|>]|\)?;", line)[0].replace("…", " ")
    words = shlex.split(re.sub(r"\[(\S[^]]*)\]", r"\1", line))[1:]
    return [{"N": "1", "PRICE": "1", "key=value": "seed=1"}.get(word, word) for word in words]


def parse(words: list[str]) -> click.Context:
    """What the real parser makes of it, without running it. Raises UsageError."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]}")
        command, words = found, words[1:]
    if isinstance(command, click.Group):
        assert words in ([], ["--help"]), words
        return click.Context(command)
    context = command.make_context(command.name, list(words))
    if command is submit and context.params["job"] is not None:
        return ENTRIES[context.params["job"]].command.make_context("job", list(context.params["arguments"]))
    return context


SOURCES = [file for folder in ("ray_sr", "jobs", "tune", "serve") for file in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_is_one(page: Path) -> None:
    """Commands, options, and keys and values of recipes that come with ray-sr."""
    wrong = []
    for line, complete in command_lines(page.read_text("utf-8"), blocks=page.suffix == ".md"):
        try:
            given = parse(words_of(line)).params
            if given.get("recipe_name") in RECIPES:
                load_recipe(given["recipe_name"], given.get("overrides", ()))
        except (click.UsageError, RaySRError) as error:
            cut = isinstance(error, click.MissingParameter) or "requires an argument" in str(error)
            if not cut or (complete and "…" not in line):
                wrong.append((line, str(error)))
    assert not wrong


def test_the_check_of_command_lines_sees_what_is_wrong() -> None:
    text = (
        "    ray-sr train --nowhere\n\nSee `ray-sr nonsense`.\n\n```\nray-sr upscale\nray-sr doctor  # fine\n```\n"
    )
    found = list(command_lines(text))
    assert [complete for _, complete in found] == [True, False, True, True]
    for line, _ in found[:3]:
        with pytest.raises(click.UsageError):
            parse(words_of(line))
    parse(words_of(found[3][0]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_and_modules_are_there(page: Path) -> None:
    """What a page names in backticks as a file of the repository, and what it starts by `python -m`."""
    text = page.read_text("utf-8")
    names = re.findall(r"`((?:ray_sr|tests|tune|serve|jobs|clusters|kubernetes|benchmarks)/[\w./-]+)`", text)
    modules = re.findall(r"python -m ((?:benchmarks|ray_sr|tests)[\w.]*)", text)
    absent = [name for name in names if not (ROOT / name).exists()]
    absent += [module for module in modules if importlib.util.find_spec(module) is None]
    if page.name == "CHANGELOG.md":  # which tells of what was
        absent = [name for name in absent if name != "ray_sr.spot"]
    assert not absent


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    rows = re.findall(
        r"^\| (\d+) \| .* \| (.*?) ?\|$", (ROOT / "docs" / "README.md").read_text("utf-8"), re.MULTILINE
    )
    told = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RaySRError)]
    assert told == {kind.__name__: kind.exit_code for kind in kinds if kind is not RaySRError}
    assert [code for code, _ in rows] == ["0", "1", "2", "3", "4", "5", "6", "130"]
