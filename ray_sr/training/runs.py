"""The folder of a run: recipe.yaml, metrics.jsonl, samples/, run.json and Ray Train's checkpoints."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.errors import InputError
from ray_sr.recipe import Recipe
from ray_sr.recipe_reader import load_recipe
from ray_sr.training.monitor import Record, read_journal
from ray_sr.training.state import GENERATOR_FILE, PRETRAINED_FILE, STATE_FILE

_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Run:
    """Paths inside a run's folder."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> Run:
        return cls(Path(folder).expanduser().absolute())

    @classmethod
    def existing(cls, folder: str | Path) -> Run:
        """A run that has begun; InputError where there is none."""
        run = cls.at(folder)
        if not run.recipe_file.is_file():
            raise InputError(f"{folder}: no run here (no recipe.yaml): `ray-sr train -o` makes one")
        return run

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def journal(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def facts_file(self) -> Path:
        return self.folder / "run.json"

    def recipe(self) -> Recipe:
        return load_recipe(str(self.recipe_file))

    def facts(self) -> dict[str, Any]:
        """Versions, hardware and data of the run, as noted at its start."""
        return json.loads(self.facts_file.read_text(encoding="utf-8")) if self.facts_file.exists() else {}

    def records(self, event: str) -> list[Record]:
        """The lines of metrics.jsonl of one kind: train, validation, start."""
        if not self.journal.exists():
            return []
        return read_journal(self.journal, lambda record: record.get("event") == event)

    def checkpoint(self) -> Path | None:
        """The last checkpoint that all workers finished, as Ray Train noted it; None before the first."""
        if not (self.folder / _SNAPSHOT).exists():
            return None
        from ray.train import Result

        logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells at length that it found the run
        latest = Result.from_path(str(self.folder)).checkpoint
        return Path(latest.path) if latest else None

    def generator(self, stage: str = "last") -> Path:
        """Weights file of the averaged generator; `pretrain` is the one from before the GAN stage."""
        checkpoint = self.checkpoint()
        if checkpoint is None or not (checkpoint / STATE_FILE).exists():
            raise InputError(f"{self.folder}: no checkpoint yet")
        pretrained = checkpoint / PRETRAINED_FILE
        if stage == "pretrain" and pretrained.exists():
            return pretrained
        return checkpoint / GENERATOR_FILE
