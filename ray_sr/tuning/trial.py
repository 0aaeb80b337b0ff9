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

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sr.errors import ClusterError
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from ray_sr.tuning.folder import SweepFolder, TrialFolder
from ray_sr.tuning.trial_recipe import trial_recipe

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
        self._trainer: Any = None
        self._is_training = False

    def step(self) -> dict[str, Any]:
        """The next validation; those of an earlier session first, so that the scheduler knows them again."""
        if self._past:
            return {**self._report(self._past.pop(0)), "replayed": True}
        if not self._is_training and not self._is_to_stop():
            self._begin()
        while self._is_training:
            if self._is_to_stop():
                ray.get(self._trainer.stop.remote())
            record, self._is_training = ray.get(self._trainer.next.remote())
            if record is not None:
                result = self._report(record)
                if record["step"] < self._recipe.total_steps:
                    return result
        return {**self._last, "done": True}

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
        """Become another trial: saves starting processes and importing torch anew."""
        self._rest()
        trainer = self._trainer
        self.setup(new_config)
        self._trainer = trainer
        return True

    def cleanup(self) -> None:
        self._rest()

    def _begin(self) -> None:
        if self._trainer is None:
            # A process of its own: Tune would put all tasks of this one into the trial's placement group.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._trainer = ray.remote(_Trainer).options(num_cpus=0, scheduling_strategy=here).remote()
        ray.get(self._trainer.begin.remote(self._recipe.dump(), self._trial, self._sweep.card().shards))
        self._is_training = True

    def _report(self, record: Record) -> dict[str, Any]:
        self._last = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        return dict(self._last)

    def _is_to_stop(self) -> bool:
        return self._trial.stop_file.exists() or self._sweep.stop_file.exists()

    def _rest(self) -> None:
        """Let the training end at a checkpoint; the next step goes on from it."""
        if self._is_training:
            self._is_training = False
            ray.get(self._trainer.end.remote())


class _Trainer:
    """An actor that runs one training after another, each in a thread of its own."""

    def __init__(self) -> None:
        self._validations: queue.Queue[Record] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread()
        self._failure: BaseException | None = None

    def begin(self, recipe: dict[str, Any], trial: TrialFolder, shards: str) -> None:
        self._stop.clear()
        self._failure = None
        arguments = (Recipe.model_validate(recipe), trial, shards)
        self._thread = threading.Thread(target=self._run, args=arguments, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Record | None, bool]:
        """A validation, or None if there is none for a while; and whether more may come. Raises what failed."""
        try:
            return self._validations.get(timeout=POLL_SECONDS), True
        except queue.Empty:
            pass
        if self._thread.is_alive() or not self._validations.empty():
            return None, True
        if self._failure is not None:
            raise self._failure
        return None, False

    def stop(self) -> None:
        """Ask the training to end at a checkpoint."""
        self._stop.set()

    def end(self) -> None:
        """Stop and wait; validations on the way are dropped. Raises what training failed with."""
        self._stop.set()
        self._thread.join(LONGEST_STOP_SECONDS)
        if self._thread.is_alive():
            raise ClusterError(f"training did not stop within {LONGEST_STOP_SECONDS:.0f} s")
        self._validations = queue.Queue()
        if self._failure is not None:
            raise self._failure

    def _run(self, recipe: Recipe, trial: TrialFolder, shards: str) -> None:
        try:
            with _alone(trial):
                run = trial.run
                resume = run.checkpoint() is not None
                train(recipe, run, shards=shards, resume=resume, listen=self._hear, stop=self._stop)
        except Interrupted:
            return
        except BaseException as error:  # raised again where the trial hears of it
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
