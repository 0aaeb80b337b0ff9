"""Wires a run to Ray: the data stream, the workers of Ray Train, the monitor, and the driver that waits."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import ray
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_sr import __version__
from ray_sr.cluster import capacity, require_shared
from ray_sr.data.manifest import MANIFEST, Manifest, read_manifest, shards_of
from ray_sr.data.stream import BatchStream, open_stream
from ray_sr.errors import ClusterError, InputError, RaySRError, RecipeError, ResourceError, from_description
from ray_sr.images import write_bytes
from ray_sr.perceptual.quality import resolve_quality_weights
from ray_sr.perceptual.vgg import resolve_feature_weights
from ray_sr.recipes.reader import recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.signals import ending_gently
from ray_sr.storage import first_line
from ray_sr.storage.local import remove_leftovers
from ray_sr.training.checkpoints import sweep
from ray_sr.training.monitor import Journal, Record, start_monitor
from ray_sr.training.optimizer import check_optimizer
from ray_sr.training.resume import Resumable, find_resumable
from ray_sr.training.room import fewest_workers, require_room, worker_cpus
from ray_sr.training.runs import Run
from ray_sr.training.teachers import check_teachers
from ray_sr.training.trackers import Trackers, check_trackers
from ray_sr.training.warm_start import InitialWeights, initial_discriminator, initial_weights
from ray_sr.training.worker import train_worker

DRAIN_SECONDS = 0.5
SILENT_SECONDS = 60.0
Listener = Callable[[Record], None]


class Interrupted(RaySRError):
    """Stopped by Ctrl-C or SIGTERM after a checkpoint. Exit code 130."""

    exit_code = 130


@dataclass(frozen=True)
class Trained:
    """What a run ended with."""

    run: Run
    step: int
    metrics: dict[str, float]


def train(
    recipe: Recipe,
    run: Run,
    *,
    shards: str | None = None,
    resume: bool = False,
    listen: Listener = lambda record: None,
    stop: threading.Event | None = None,
) -> Trained:
    """Train a recipe into a run folder; Ray must be running. `listen` hears every record of the journal.

    Where `stop` is set by another thread, the run ends at its next log line, with a checkpoint, by Interrupted.

    Everything that can be wrong is checked before any work. Raises RecipeError, InputError, ResourceError,
    ModelError, ClusterError, and Interrupted.
    """
    place = shards_of(recipe, shards)
    manifest = read_manifest(place)
    _check_run(run, resume)
    check_trackers(recipe.training.trackers)
    check_optimizers(recipe)
    for stage in (recipe.pretrain, recipe.gan):
        if stage:
            resolve_feature_weights(stage.losses, recipe.features)
            resolve_quality_weights(stage.losses)
    scaling = _scaling(recipe)
    start = initial_weights(recipe.init, recipe) if recipe.init else None
    critic = initial_discriminator(recipe)
    teachers = check_teachers(recipe)
    with run.held():
        found = find_resumable(run, recipe) if resume else None
        shared = [f"{place}/{MANIFEST}", f"{run.place}/{run.lock_file.name}"]
        require_shared(*shared)
        monitor = start_monitor()
        stream = open_stream(recipe, place, gpu=bool(scaling.use_gpu))
        changed = _changed_data(run, manifest) if found else {}
        facts = _write_facts(recipe, run, place, manifest, start)
        resumed = _make_ready(run, found)
        config = {
            "recipe": recipe.dump(),
            "resume": resumed,
            "best_until": found.step if found and "held_out_digest" in changed else -1,
            "shards": place,
            "gpu": scaling.use_gpu,
            "shared": [file for file in shared if "://" not in file],
            "monitor": monitor,
            "init": ray.put(start.weights) if start else None,
            "init_discriminator": ray.put(critic) if critic else None,
            "teachers": ray.put(teachers),
            "stream": ray.put(stream),
            "data": _data_card(stream),
        }
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=config,
            scaling_config=scaling,
            run_config=_run_config(recipe, run),
        )
        listen({"event": "facts", "step": 0, **facts})
        if found:
            listen({"event": "resumed", "step": found.step, "damaged": found.damaged, "changed": changed})
        if "held_out_digest" in changed:
            run.set_best_aside(changed["held_out_digest"])
        trackers = Trackers(recipe, run.folder)
        try:
            return _Driver(trainer, recipe, run, monitor, [listen, trackers.hear], stop or threading.Event()).run()
        finally:
            trackers.close()


def check_optimizers(recipe: Recipe) -> None:
    """Raises ResourceError where a library that the recipe asks for is missing."""
    if recipe.pretrain:
        check_optimizer(recipe.pretrain.optimizer)
    if recipe.gan:
        check_optimizer(recipe.gan.generator_optimizer)
        check_optimizer(recipe.gan.discriminator_optimizer)


def _check_run(run: Run, resume: bool) -> None:
    has_checkpoint = run.checkpoint() is not None
    if resume and not has_checkpoint:
        raise InputError(f"{run.place}: nothing to resume, there is no checkpoint: leave out --resume")
    if has_checkpoint and not resume:
        raise RecipeError(f"{run.place}: there is a run already: give --resume to go on, or another -o")


def _scaling(recipe: Recipe) -> ScalingConfig:
    """Workers with their resources. Refuses what would leave no CPU to make crops: the run would never begin."""
    training = recipe.training
    gpus = capacity().get("GPU", 0)
    fewest = fewest_workers(training)
    wanted = fewest * training.gpus_per_worker
    use_gpu = training.device == "gpu" or (training.device == "auto" and gpus >= wanted)
    if training.device == "auto" and 0 < gpus < wanted:
        raise ResourceError(
            f"training.workers {fewest} with {training.gpus_per_worker:g} GPUs each need {wanted:g}, the cluster "
            f"has {gpus:g}: lower training.workers, or train on CPUs with training.device=cpu"
        )
    if use_gpu and gpus < wanted:
        each = "a GPU" if training.gpus_per_worker == 1 else f"{training.gpus_per_worker:g} GPUs"
        raise ResourceError(f"training.workers {fewest} need {each} each, the cluster has {gpus:g}")
    require_room(training)
    workers: Any = training.workers if fewest == training.workers else (fewest, training.workers)
    return ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        placement_strategy=training.placement.upper(),
        resources_per_worker={
            "CPU": worker_cpus(training),
            **({"GPU": training.gpus_per_worker} if use_gpu else {}),
        },
    )


def _run_config(recipe: Recipe, run: Run) -> RunConfig:
    filesystem, path = run.storage()
    parent, _, name = path.rpartition("/")
    if not name.isascii():  # Ray Train labels its metrics with it, and Ray takes no other letters there
        os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
    return RunConfig(
        name=name,
        storage_path=parent,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=recipe.training.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=recipe.training.keep_checkpoints),
    )


def _make_ready(run: Run, found: Resumable | None) -> str | None:
    """Remove what killed processes left. Returns the checkpoint's place where Ray Train does not know it itself."""
    sweep(run.folder)
    for folder in (run.folder, run.best, run.samples):
        remove_leftovers(folder)
    if found is None:
        return None
    resumed = run.go_on_from(found.name)
    run.set_damaged_aside(found.damaged)
    return resumed


def _data_card(stream: BatchStream) -> dict[str, Any]:
    return {
        "sub_images": len(stream.index),
        "cached": stream.cached,
        "degrade_in": stream.place,
        "skipped": stream.index.skipped,
    }


def _changed_data(run: Run, manifest: Manifest) -> dict[str, str]:
    """The digests of run.json that are no longer those of the shards: of all, and of the held-out photos."""
    try:
        before = run.facts()
    except InputError:
        return {}
    now = {"data_digest": manifest.digest, "held_out_digest": manifest.digest_of("validation")}
    if before.get("data_digest", manifest.digest) == manifest.digest:
        return {}
    before = {"held_out_digest": before["data_digest"], **before}  # of a run that began before both were noted
    return {name: before[name] for name, digest in now.items() if before[name] != digest}


def _write_facts(
    recipe: Recipe, run: Run, shards: str, manifest: Manifest, start: InitialWeights | None
) -> dict[str, Any]:
    facts = {
        "ray_sr": __version__,
        "ray": ray.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": ray.cluster_resources().get("CPU", 0),
        "gpus": ray.cluster_resources().get("GPU", 0),
        "nodes": len(ray.nodes()),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "shards": shards,
        "data_digest": manifest.digest,
        "held_out_digest": manifest.digest_of("validation"),
        "held_out": manifest.photos.get("validation", 0),
        **({"starts_from": str(start)} if start else {}),
    }
    try:
        run.samples.mkdir(parents=True, exist_ok=True)
        write_bytes(run.recipe_file, recipe_yaml(recipe).encode())
        write_bytes(run.facts_file, json.dumps(facts, indent=1).encode())
        run.push()
    except OSError as error:
        raise ResourceError(f"{run.place}: cannot write the run here: {first_line(error)}") from None
    return facts


class _Driver:
    """Runs the trainer in a thread of its own while this one writes the journal and hears Ctrl-C."""

    def __init__(
        self,
        trainer: TorchTrainer,
        recipe: Recipe,
        run: Run,
        monitor: Any,
        listeners: Sequence[Listener],
        stop: threading.Event,
    ) -> None:
        self.trainer, self.recipe, self.run_folder, self.monitor = trainer, recipe, run, monitor
        self.listeners, self.stop = listeners, stop
        self.journal = Journal(run.journal)
        self.failure: BaseException | None = None
        self.refusal: Record | None = None
        self.unwritable: ResourceError | None = None
        self.last: dict[str, Any] = {}
        self.step = 0
        self.interrupted = False
        self.heard = time.monotonic()

    def run(self) -> Trained:
        thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        with ending_gently(self._interrupt), closing(self.journal):
            thread.start()
            while thread.is_alive():
                self._drain(DRAIN_SECONDS)
                self._tell_if_stuck()
                if self.stop.is_set() and not self.interrupted:
                    self._interrupt()
            self._drain(0)
            sweep(self.run_folder.folder)  # Ray Train ends the workers where its own note cannot be written
            self._push()
        self._raise_failure()
        return Trained(self.run_folder, self.step, self.last)

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:  # handed to the waiting thread, which raises it
            self.failure = error

    def _interrupt(self) -> None:
        """The workers save a checkpoint, then the run ends."""
        self.interrupted = True
        self.monitor.stop.remote()
        self._tell({"event": "stopping", "step": self.step})

    def _drain(self, seconds: float) -> None:
        try:
            records = ray.get(self.monitor.drain.remote(seconds))
        except RayError as error:
            raise ClusterError(f"lost the connection to Ray: {first_line(error)}") from None
        for record in records:
            self._hear(record)
        if records:
            self.heard = time.monotonic()

    def _tell_if_stuck(self) -> None:
        """Others may have taken the CPUs that make crops since the run began; it waits for them in silence."""
        if time.monotonic() - self.heard < SILENT_SECONDS:
            return
        self.heard = time.monotonic()
        if ray.available_resources().get("CPU", 0) < 1:
            self._tell({"event": "waiting", "step": self.step})

    def _hear(self, record: Record) -> None:
        try:
            if self.unwritable is None:
                self._note(record)
        except (OSError, ResourceError) as error:
            wrong = ResourceError(f"{self.run_folder.place}: cannot write: {first_line(error)}")
            self.unwritable = error if isinstance(error, ResourceError) else wrong
            self.monitor.stop.remote()

    def _note(self, record: Record) -> None:
        match record["event"]:
            case "flush":
                self.run_folder.push()
            case "error":
                self.refusal = record
            case "sample":
                write_bytes(self.run_folder.samples / f"{record['step']:08d}.png", record["png"])
            case "best":
                self.run_folder.keep_best(record, self.recipe.training.keep_best)
            case kind:
                if kind == "validation":
                    self.last = {key: value for key, value in record.items() if isinstance(value, float)}
                self.step = record["step"]
                self.journal.write(record)
                self._tell(record)

    def _push(self) -> None:
        try:
            self.run_folder.push()
        except ResourceError as error:
            self.unwritable = self.unwritable or error

    def _tell(self, record: Record) -> None:
        for listen in self.listeners:
            listen(record)

    def _raise_failure(self) -> None:
        if self.unwritable is not None:
            raise self.unwritable
        if self.refusal is not None:
            raise from_description(self.refusal["kind"], self.refusal["message"])
        if self.failure is not None:
            self._raise_failure_of(_root(self.failure))
        if self.interrupted:
            raise Interrupted(f"stopped at step {self.step}, checkpoint saved: go on with --resume")

    def _raise_failure_of(self, root: BaseException) -> NoReturn:
        if isinstance(root, OSError) and isinstance(self.failure, ControllerError):
            raise ResourceError(
                f"{self.run_folder.place}: cannot write: {first_line(root)}; "
                "--resume goes on from the last checkpoint"
            ) from self.failure
        raise ClusterError(
            f"training failed after step {self.step}: {first_line(root)}; "
            "--verbose shows the workers' logs, --resume goes on from the last checkpoint"
        ) from self.failure


def _root(error: BaseException) -> BaseException:
    """The exception of a worker, or of the controller, inside what Ray Train raises."""
    if isinstance(error, ControllerError):
        return error.controller_failure
    causes = getattr(error, "worker_failures", None)
    return next(iter(causes.values())) if causes else error
