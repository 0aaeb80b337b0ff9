"""The folder of a run: recipe.yaml, metrics.jsonl, samples/, best/, run.json and Ray Train's checkpoints.

A run can lie in a bucket: then `folder` is a copy of its small files, which `push` brings there.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from ray_sr.errors import InputError, ResourceError
from ray_sr.images import write_bytes
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
        with locked(str(self.folder / ".lock"), f"the run {self.place}", wait=False):
            yield

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
        """Folder of the last checkpoint, as Ray Train noted it; None before the first. In a bucket, it is there.

        Where its note is missing or cut off by a crash or a full disk, the newest of the folders, which are
        whole because they are renamed when they are; in a bucket, because their state comes last.
        """
        name = self._noted_checkpoint() or self._newest_checkpoint()
        return self.folder / name if name else None

    def _newest_checkpoint(self) -> str | None:
        filesystem, root = self.storage()
        infos = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        folders = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
        names = sorted((name for name in folders if name.startswith(CHECKPOINTS)), reverse=True)
        return next((name for name in names if exists(filesystem, f"{root}/{name}/{STATE_FILE}")), None)

    def forget_broken_note(self) -> str | None:
        """Remove Ray Train's note where it cannot be read, since Ray Train stops at it.

        Returns the place of the checkpoint to go on from if Ray Train does not know it.
        """
        if self._noted_checkpoint():
            return None
        filesystem, root = self.storage()
        if exists(filesystem, f"{root}/{_SNAPSHOT}"):
            filesystem.delete_file(f"{root}/{_SNAPSHOT}")
        name = self._newest_checkpoint()
        return f"{self.place}/{name}" if name else None

    def _noted_checkpoint(self) -> str | None:
        filesystem, root = self.storage()
        try:
            noted = json.loads(read_file(filesystem, f"{root}/{_SNAPSHOT}"))
        except (FileNotFoundError, ValueError):
            return None
        if not noted.get("latest_checkpoint_result"):
            return None
        from ray.train import Result

        logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells at length that it found the run
        latest = Result.from_path(root, storage_filesystem=filesystem).checkpoint
        return PurePosixPath(latest.path).name if latest else None

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
                raise InputError(f"{self.place}: no validation yet, so no best generator")
            return kept[0]
        checkpoint = self.checkpoint()
        filesystem, root = self.storage()
        if checkpoint is None or not exists(filesystem, f"{root}/{checkpoint.name}/{STATE_FILE}"):
            raise InputError(f"{self.place}: no checkpoint yet")
        pretrained = stage == "pretrain" and exists(filesystem, f"{root}/{checkpoint.name}/{PRETRAINED_FILE}")
        name = f"{checkpoint.name}/{PRETRAINED_FILE if pretrained else GENERATOR_FILE}"
        return self.mirror.fetch(name) if self.mirror else self.folder / name


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
