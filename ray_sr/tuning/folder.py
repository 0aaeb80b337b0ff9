"""The folder of a sweep: sweep.json, recipe.yaml, trials/001 …, each a run with a trial.json; then the results.

These files are the only state of a sweep. Ray Tune's own, in ray/, are not read again: a restored Tuner knows
the trials, but its scheduler has forgotten what they were compared by.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.images import write_bytes
from ray_sr.recipes.reader import load_recipe, recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.recipes.section import Section
from ray_sr.storage import first_line, resolve_location
from ray_sr.training.runs import Run
from ray_sr.tuning.space import Space, Values

Status = Literal["running", "done", "stopped", "failed"]
Why = Literal["interrupted", "budget"]
Card = TypeVar("Card", bound=Section)


class SweepCard(Section):
    """sweep.json: what the sweep was asked for, and what of its budget is spent."""

    format: Literal[1] = 1
    space: dict[str, Any]
    shards: str
    data_digest: str = Field("", description="of the shards' manifest when the sweep began")
    seconds: float = Field(0.0, ge=0, description="time spent so far, all sessions together")
    gpu_seconds: float = Field(0.0, ge=0, description="GPUs in use times seconds")


class TrialCard(Section):
    """trial.json: the values of a trial and how it stands. `stopped`: early, by the scheduler."""

    number: int = Field(ge=1)
    values: Values
    status: Status = "running"
    reason: str | None = Field(None, description="why it failed")


@dataclass(frozen=True)
class TrialFolder:
    """One trial: a run folder with a trial.json."""

    path: Path
    number: int

    @property
    def run(self) -> Run:
        return Run(self.path)

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def stop_file(self) -> Path:
        """There once the scheduler has decided that this trial ends early."""
        return self.path / "stop"

    def card(self) -> TrialCard | None:
        """None before the trial has begun."""
        path = self.path / "trial.json"
        return _read_card(path, TrialCard.model_validate_json) if path.exists() else None

    def write(self, card: TrialCard) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "trial.json", card.model_dump(mode="json"))


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder."""

    path: Path

    @classmethod
    def at(cls, folder: str | Path) -> SweepFolder:
        place = resolve_location(folder)
        if "://" in place:
            raise RecipeError(
                f"{place}: the trials of a sweep lock files: give a folder, shared by NFS where nodes are"
            )
        return cls(Path(place))

    @property
    def card_file(self) -> Path:
        return self.path / "sweep.json"

    @property
    def stop_file(self) -> Path:
        """There while all trials are to stop; its text says why."""
        return self.path / "stop"

    @property
    def tune_folder(self) -> Path:
        return self.path / "ray"

    def begin(self, card: SweepCard, recipe: Recipe) -> None:
        """Make the folder. Raises InputError where there is a sweep, ResourceError where it cannot be written."""
        if self.card_file.exists():
            raise InputError(f"{self.path}: there is a sweep already: give --resume to go on, or another -o")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
            self.write(card)
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot write the sweep here: {first_line(error)}") from None

    def card(self) -> SweepCard:
        """Raises InputError where there is no sweep."""
        if not self.card_file.exists():
            raise InputError(f"{self.path}: no sweep here (no sweep.json): leave out --resume")
        return _read_card(self.card_file, SweepCard.model_validate_json)

    def write(self, card: SweepCard) -> None:
        _write_json(self.card_file, card.model_dump(mode="json"))

    def space(self) -> Space:
        return Space.model_validate(self.card().space)

    def recipe(self) -> Recipe:
        return load_recipe(str(self.path / "recipe.yaml"))

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:03d}", number)

    def trials(self) -> list[TrialFolder]:
        """The trials that have begun, in their order."""
        numbers = sorted(int(path.parent.name) for path in self.path.glob("trials/*/trial.json"))
        return [self.trial(number) for number in numbers]

    def stop(self, why: Why) -> None:
        """Ask every trial to stop and let none begin."""
        if not self.stop_file.exists():
            self.stop_file.write_text(why, encoding="utf-8")

    def why_stopped(self) -> str | None:
        return self.stop_file.read_text(encoding="utf-8") if self.stop_file.exists() else None


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(data, indent=1, ensure_ascii=False).encode())


def _read_card(path: Path, parse: Callable[[str], Card]) -> Card:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError) as error:
        raise InputError(f"{path}: not readable, or of another version: {first_line(error)}") from None
