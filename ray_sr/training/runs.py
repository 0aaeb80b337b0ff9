"""The folder of a run: recipe.yaml, metrics.jsonl, samples/, best/, run.json and Ray Train's checkpoints.

A run can lie in a bucket: then `folder` is a copy of its small files, which `push` brings there.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from ray_sr.errors import InputError, ResourceError
from ray_sr.images import write_bytes
from ray_sr.metrics import MOST_DECIBELS
from ray_sr.recipes.reader import load_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import access_error, exists, first_line, open_filesystem, read_file, resolve_location
from ray_sr.storage.lock import locked
from ray_sr.training.mirror import CHECKPOINTS, Mirror
from ray_sr.training.monitor import Record, read_journal
from ray_sr.training.state import GENERATOR_FILE, PRETRAINED_FILE, STATE_FILE

_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Run:
    """Paths inside a run's folder."""

    folder: Path
    mirror: Mirror | None = None

    @classmethod
    def at(cls, folder: str | Path) -> Run:
        """The run at a folder or URI (below RAY_SR_STORAGE where that is set), as it is there now."""
        place = resolve_location(folder)
        if "://" not in place:
            return cls(Path(place))
        mirror = Mirror.of(place)
        mirror.pull()
        return cls(mirror.folder, mirror)

    @classmethod
    def existing(cls, folder: str | Path) -> Run:
        """A run that has begun; InputError where there is none."""
        run = cls.at(folder)
        if not run.recipe_file.is_file():
            raise InputError(f"{run.place}: no run here (no recipe.yaml): `ray-sr train -o` makes one")
        return run

    @property
    def place(self) -> str:
        """The folder or URI where the run is."""
        return self.mirror.uri if self.mirror else str(self.folder)

    def storage(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem that the checkpoints are on, and the run's path there."""
        return open_filesystem(self.place)

    def push(self) -> None:
        """Bring what is new to the bucket, if the run lies in one. Raises ResourceError."""
        if self.mirror:
            self.mirror.push()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes from training in it. ResourceError where one does.

        In a bucket and on filesystems without locks it holds nothing.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self.place}: cannot write the run here: {first_line(error)}") from None
        with locked(str(self.lock_file), f"the run {self.place}", wait=False):
            yield

    @property
    def lock_file(self) -> Path:
        """Held while somebody trains here."""
        return self.folder / ".lock"

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
        """Versions, hardware and data of the run, as noted at its start; InputError where they are cut off."""
        if not self.facts_file.exists():
            return {}
        try:
            facts = json.loads(self.facts_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.place}/{self.facts_file.name}: not readable: {first_line(error)}; `ray-sr train --resume` "
                "writes it anew"
            ) from None
        return facts if isinstance(facts, dict) else {}

    def records(self, event: str) -> list[Record]:
        """The lines of metrics.jsonl of one kind: train, validation, start."""
        if not self.journal.exists():
            return []
        found = read_journal(self.journal, lambda record: record.get("event") == event)
        return [record for record in map(_measured, found) if record] if event == "validation" else found

    def checkpoint(self) -> Path | None:
        """Folder of the last checkpoint; None before the first. In a bucket, it is there."""
        names = self.checkpoints()
        return self.folder / names[0] if names else None

    def checkpoints(self) -> list[str]:
        """Folder names of the checkpoints, the last first.

        The last is the one that Ray Train noted. Where its note is missing, cut off or names what is gone, it is
        the newest of the folders, which are whole because they are renamed when they are; in a bucket, because
        their state comes last.
        """
        filesystem, root = self.storage()
        try:
            infos = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        except NotADirectoryError:
            raise ResourceError(f"{self.place}: is, or lies below, a file: give another folder") from None
        folders = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
        names = sorted((name for name in folders if name.startswith(CHECKPOINTS)), reverse=True)
        whole = [name for name in names if exists(filesystem, f"{root}/{name}/{STATE_FILE}")]
        noted = self._noted_checkpoint(set(whole))
        return sorted(whole, key=lambda name: name != noted)

    def go_on_from(self, name: str) -> str | None:
        """Let Ray Train go on from this checkpoint. Returns its place where Ray Train's own note is another.

        That note is removed then: Ray Train stops at one that it cannot follow.
        """
        filesystem, root = self.storage()
        if self._noted_checkpoint(set(self.checkpoints())) == name:
            return None
        if exists(filesystem, f"{root}/{_SNAPSHOT}"):
            filesystem.delete_file(f"{root}/{_SNAPSHOT}")
        return f"{self.place}/{name}"

    def set_damaged_aside(self, names: Iterable[str]) -> None:
        """Rename checkpoints that cannot be read, so that nobody takes them for the last; in a bucket they stay."""
        for name in names:
            if self.mirror is None:
                (self.folder / name).rename(self.folder / f"damaged-{name}-{secrets.token_hex(2)}")

    def _noted_checkpoint(self, whole: set[str]) -> str | None:
        """The checkpoint that Ray Train's note calls the latest; None where it names one that is not `whole`."""
        filesystem, root = self.storage()
        try:
            noted = json.loads(read_file(filesystem, f"{root}/{_SNAPSHOT}"))
            latest = noted["latest_checkpoint_result"]["checkpoint_dir_name"]
            named = {result["checkpoint_dir_name"] for result in noted["checkpoint_results"]}
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return latest if latest in whole and named <= whole else None

    def keep_best(self, record: Record, most: int) -> None:
        """Write the generator of a `best` record and forget the worst of its stage beyond `most`."""
        name = f"{record['stage']}-{record['step']:08d}-{record['psnr_y']:07.4f}.safetensors"
        self.best.mkdir(exist_ok=True)
        write_bytes(self.best / name, record["weights"])
        for path in self._best_of(record["stage"])[most:]:
            path.unlink()

    def set_best_aside(self, digest: str) -> None:
        """Keep apart the generators that were measured on the held-out photos of this digest."""
        if self.best.is_dir():
            self.best.rename(self.folder / f"best-{digest[:8]}-{secrets.token_hex(2)}")

    def _best_of(self, stage: str) -> list[Path]:
        """Kept generators of a stage, best first; the later one of equals."""
        return sorted(self.best.glob(f"{stage}-*.safetensors"), key=_rank, reverse=True)

    def generator(self, stage: str = "last") -> Path:
        """Weights file of the averaged generator.

        `pretrain` is the one from before the GAN stage, `best` that of the highest PSNR-Y in the last stage.
        """
        if stage == "best":
            kept = self._best_of("gan") or self._best_of("pretrain")
            if not kept:
                raise InputError(f"{self.place}: no validation yet, so no best generator")
            return kept[0]
        filesystem, root = self.storage()
        names = (name for name in self.checkpoints() if exists(filesystem, f"{root}/{name}/{GENERATOR_FILE}"))
        checkpoint = next(names, None)
        if checkpoint is None:
            raise InputError(f"{self.place}: no checkpoint yet")
        name = f"{checkpoint}/{GENERATOR_FILE}"
        if stage == "pretrain":
            pretrained = f"{checkpoint}/{PRETRAINED_FILE}"
            if exists(filesystem, f"{root}/{pretrained}"):
                name = pretrained
            elif self._is_past_pretraining():
                raise InputError(f"{self.place}: no generator of pre-training was kept, the last one is the GAN's")
        return self.mirror.fetch(name) if self.mirror else self.folder / name

    def _is_past_pretraining(self) -> bool:
        """Whether the last checkpoint may hold a generator of the GAN stage."""
        return self.recipe().pretrain is None or any(r["stage"] == "gan" for r in self.records("train"))


def generator_of_run(model: str) -> str | None:
    """The last generator of a run where MODEL is the folder of one; None where it is something else.

    A bare name that is no folder here is one of the model store. Raises InputError where it cannot be looked at.
    """
    if "/" not in model and not Path(model).is_dir():
        return None
    folder = resolve_location(model)
    filesystem, path = open_filesystem(folder)
    try:
        is_run = exists(filesystem, f"{path}/metrics.jsonl")
    except OSError as error:
        raise InputError(access_error(folder, error)) from None
    return str(Run.existing(model).generator()) if is_run else None


def _rank(kept: Path) -> tuple[float, int]:
    """By the name STAGE-STEP-PSNR: the figure, and the step among equals; what is no number comes last."""
    _, step, psnr_y = kept.stem.split("-", 2)
    value = float(psnr_y)
    return (value if value == value else -math.inf), int(step)


def _measured(record: Record) -> Record | None:
    """A validation of an older run: an exact result counts as it does now; None where nothing was measured."""
    figures = {name: value for name, value in record.items() if isinstance(value, float)}
    if any(math.isnan(value) for value in figures.values()):
        return None
    return {**record, **{name: min(value, MOST_DECIBELS) for name, value in figures.items() if "psnr" in name}}
