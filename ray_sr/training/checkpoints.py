"""Checkpoints are written beside training: a snapshot between two steps, then a thread of Ray Train writes it."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from ray_sr.errors import ResourceError, described
from ray_sr.storage import first_line
from ray_sr.training.state import STATE_FILE, Snapshot


@dataclass
class Waiting:
    """A snapshot on its way to storage; it is let go when it has been written."""

    snapshot: Snapshot | None


class CheckpointWriter:
    """Reports the checkpoints of a run, in each of its workers; rank 0 brings the snapshots.

    Ray Train takes one report of a worker at each look of its controller (`RAY_TRAIN_HEALTH_CHECK_INTERVAL_S`),
    however small the checkpoint is. Snapshots that come faster would pile up in memory, and a stop would wait for
    all of them: `busy` says when the next one is better left out.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._waiting: Waiting | None = None

    @property
    def busy(self) -> bool:
        """Whether the former snapshot still waits or is being written."""
        return self._waiting is not None and self._waiting.snapshot is not None

    def report(self, summary: dict[str, Any], snapshot: Snapshot | None, *, wait: bool) -> None:
        """A checkpoint of all workers, to be called by each.

        Returns at once, or when the checkpoint is whole if told to `wait`. Where it cannot be written, the run ends
        with ResourceError, told by the monitor, and the former checkpoint stays.
        """
        mode = CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC
        name = f"checkpoint_{summary['step']:08d}"
        if snapshot is None:
            ray.train.report(summary, None, checkpoint_dir_name=name, checkpoint_upload_mode=mode)
            return
        self._waiting = Waiting(snapshot)
        ray.train.report(
            summary,
            Checkpoint.from_directory(tempfile.mkdtemp(prefix="ray-sr-")),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=partial(_upload, waiting=self._waiting, monitor=self._monitor),
        )


def _upload(local: Checkpoint, name: str, *, waiting: Waiting, monitor: Any) -> Checkpoint:
    """Write the snapshot to the run's storage under its name, whole or not at all."""
    storage = ray.train.get_context().get_storage()
    place = f"{storage.experiment_fs_path}/{name}"
    ray.get(monitor.written.remote())  # a resumed run finds all log lines of the steps it keeps
    snapshot = waiting.snapshot
    assert snapshot is not None
    try:
        if isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem):
            write_whole(snapshot, Path(place))
        else:
            snapshot.write(Path(local.path))
            upload(Path(local.path), storage.storage_filesystem, place)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by RuntimeError
        wrong = ResourceError(f"{place}: cannot write the checkpoint: {first_line(error)}; the former one is whole")
        ray.get(monitor.log.remote({"event": "error", "step": snapshot.step, **described(wrong)}))
        raise
    waiting.snapshot = None
    return Checkpoint(place, storage.storage_filesystem)


def upload(folder: Path, filesystem: pyarrow.fs.FileSystem, place: str) -> None:
    """The files of a checkpoint to a bucket, which knows no rename: the state comes last and makes it whole."""
    filesystem.create_dir(place, recursive=True)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == STATE_FILE):
        pyarrow.fs.copy_files(str(path), f"{place}/{path.name}", destination_filesystem=filesystem)


def write_whole(snapshot: Snapshot, folder: Path) -> None:
    """Aside, to the disk, and renamed: a crash at any time leaves no half checkpoint under its name."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        snapshot.write(aside)
        for path in [*aside.iterdir(), aside]:
            _to_disk(path)
        if folder.exists():  # of a step that is done again after a restart
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def sweep(run: Path) -> None:
    """Remove what a worker that was killed while it wrote has left in the run's folder."""
    for aside in run.glob(".checkpoint_*.partial"):
        shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
