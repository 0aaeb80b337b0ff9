"""A trial: the training of `ray-sr train`, seen by Ray Tune as a Trainable that reports its validations.

Trials end by their own hand: whoever wants one to stop leaves a file, the trial sees it, its workers save a
checkpoint and go, and only then it tells Tune that it is done. If Tune ended the actor instead, the workers'
placement group would stay behind (ray#54305, ray#58515) and the next trial would wait for its CPUs for ever.
"""

from __future__ import annotations

import fcntl
import json
import queue
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from ray_sr.errors import ClusterError
from ray_sr.recipe import Recipe
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from ray_sr.tuning.folder import SweepFolder, TrialFolder
from ray_sr.tuning.recipes import trial_recipe

POLL_SECONDS = 0.5
LONGEST_STOP_SECONDS = 300.0
ORIGIN = "origin.json"


class TrialRun(tune.Trainable):
    """config: `sweep` (folder), `trial` (number), `values` (field -> value). A result is one validation."""

    def setup(self, config: dict[str, Any]) -> None:
        self._sweep = SweepFolder.at(config["sweep"])
        self._trial = self._sweep.trial(config["trial"])
        self._recipe = trial_recipe(self._sweep.recipe(), config["values"])
        self._past = _validations_before_checkpoint(self._trial.run)
        self._last: dict[str, Any] = {}
        self._training: _Training | None = None

    def step(self) -> dict[str, Any]:
        """The next validation; those of an earlier session first, so that the scheduler knows them again."""
        if self._past:
            return {**self._report(self._past.pop(0)), "replayed": True}
        if self._training is None:
            if self._is_to_stop():
                return {**self._last, "done": True}
            self._training = _Training(self._recipe, self._trial, self._sweep.card().shards)
        while (record := self._training.next()) is None:
            if self._training.ended():
                return {**self._last, "done": True}
            if self._is_to_stop():
                self._training.stop.set()
        return self._report(record)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For PBT, which hands the state of one trial to another. Training rests meanwhile."""
        self._rest()
        _copy_state(self._trial.path, Path(checkpoint_dir))
        (Path(checkpoint_dir) / ORIGIN).write_text(json.dumps(self._trial.number), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from another trial's state; one's own lies in the run folder already."""
        self._past = []
        origin = json.loads((Path(checkpoint) / ORIGIN).read_text(encoding="utf-8"))
        if origin != self._trial.number:
            _copy_state(Path(checkpoint), self._trial.path)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial: saves starting a process and importing torch anew."""
        self._rest()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._rest()

    def _report(self, record: Record) -> dict[str, Any]:
        self._last = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        return dict(self._last)

    def _is_to_stop(self) -> bool:
        return self._trial.stop_file.exists() or self._sweep.stop_file.exists()

    def _rest(self) -> None:
        """Let the training end at a checkpoint; the next step goes on from it."""
        if self._training is not None:
            self._training.end()
            self._training = None


class _Training:
    """`train` in a thread of its own, with the validations it reports."""

    def __init__(self, recipe: Recipe, trial: TrialFolder, shards: str) -> None:
        self.stop = threading.Event()
        self._recipe, self._trial, self._shards = recipe, trial, shards
        self._validations: queue.Queue[Record] = queue.Queue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Record | None:
        """The next validation, or None if there is none within the poll interval."""
        try:
            return self._validations.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return None

    def ended(self) -> bool:
        """True once all validations are taken and training is over. Raises what it failed with."""
        if self._thread.is_alive() or not self._validations.empty():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def end(self) -> None:
        """Stop at a checkpoint and wait for it. A failure was reported, or is seen when training goes on."""
        self.stop.set()
        self._thread.join(LONGEST_STOP_SECONDS)
        if self._thread.is_alive():
            raise ClusterError(f"{self._trial.path}: training did not stop in {LONGEST_STOP_SECONDS:.0f} s")

    def _run(self) -> None:
        try:
            with _alone(self._trial):
                run = self._trial.run
                resume = run.checkpoint() is not None
                train(self._recipe, run, shards=self._shards, resume=resume, listen=self._hear, stop=self.stop)
        except Interrupted:
            return
        except BaseException as error:  # raised again by `ended`, in the thread that Tune listens to
            self._failure = error

    def _hear(self, record: Record) -> None:
        if record["event"] == "validation":
            self._validations.put(record)


@contextmanager
def _alone(trial: TrialFolder) -> Iterator[None]:
    """Hold the trial's lock: its next incarnation waits until this one has saved its checkpoint."""
    trial.path.mkdir(parents=True, exist_ok=True)
    with trial.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _validations_before_checkpoint(run: Run) -> list[Record]:
    """What an earlier session reported and will not be trained again."""
    checkpoint = run.checkpoint()
    if checkpoint is None:
        return []
    reached = int(checkpoint.name.rpartition("_")[2])
    return [record for record in run.records("validation") if record["step"] <= reached]


def _copy_state(source: Path, target: Path) -> None:
    """Ray Train's checkpoints and its note of them, in place of what `target` has of these."""
    for path in target.glob("checkpoint_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in source.glob("checkpoint_*"):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy2(path, target)
