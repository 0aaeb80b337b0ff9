"""The folder of a run: recipe.yaml, metrics.jsonl, samples/, best/, run.json and Ray Train's checkpoints."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.errors import InputError
from ray_sr.images import write_bytes
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
    def best(self) -> Path:
        return self.folder / "best"

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
        """The last checkpoint, as Ray Train noted it; None before the first.

        Where its note is missing or cut off by a crash or a full disk, the newest of the folders, which are
        whole because they are renamed when they are.
        """
        if noted := self._noted_checkpoint():
            return noted
        whole = sorted(self.folder.glob(f"checkpoint_*/{STATE_FILE}"))
        return whole[-1].parent if whole else None

    def forget_broken_note(self) -> Path | None:
        """Remove Ray Train's note where it cannot be read, since Ray Train stops at it.

        Returns the checkpoint to go on from if Ray Train does not know it.
        """
        if self._noted_checkpoint():
            return None
        (self.folder / _SNAPSHOT).unlink(missing_ok=True)
        return self.checkpoint()

    def _noted_checkpoint(self) -> Path | None:
        try:
            noted = json.loads((self.folder / _SNAPSHOT).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not noted.get("latest_checkpoint_result"):
            return None
        from ray.train import Result

        logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells at length that it found the run
        latest = Result.from_path(str(self.folder)).checkpoint
        return Path(latest.path) if latest else None

    def keep_best(self, record: Record, most: int) -> None:
        """Write the generator of a `best` record and forget the worst of its stage beyond `most`."""
        name = f"{record['stage']}-{record['step']:08d}-{record['psnr_y']:07.4f}.safetensors"
        self.best.mkdir(exist_ok=True)
        write_bytes(self.best / name, record["weights"])
        for path in self._best_of(record["stage"])[most:]:
            path.unlink()

    def _best_of(self, stage: str) -> list[Path]:
        """Kept generators of a stage, best first; the later one of equals."""
        return sorted(
            self.best.glob(f"{stage}-*.safetensors"), key=lambda path: path.stem.split("-")[::-1], reverse=True
        )

    def generator(self, stage: str = "last") -> Path:
        """Weights file of the averaged generator.

        `pretrain` is the one from before the GAN stage, `best` that of the highest PSNR-Y in the last stage.
        """
        if stage == "best":
            kept = self._best_of("gan") or self._best_of("pretrain")
            if not kept:
                raise InputError(f"{self.folder}: no validation yet, so no best generator")
            return kept[0]
        checkpoint = self.checkpoint()
        if checkpoint is None or not (checkpoint / STATE_FILE).exists():
            raise InputError(f"{self.folder}: no checkpoint yet")
        pretrained = checkpoint / PRETRAINED_FILE
        if stage == "pretrain" and pretrained.exists():
            return pretrained
        return checkpoint / GENERATOR_FILE
