"""The loop that every Ray Train worker runs: batches, steps, log lines, validation, checkpoints."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch import Tensor, distributed, nn

from ray_sr.cluster import missing_here, not_shared
from ray_sr.data.batches import Batch, local_batches, ray_data_batches, spare_threads
from ray_sr.data.stream import BatchStream
from ray_sr.errors import RaySRError, RecipeError, ResourceError, described
from ray_sr.models.weights import encode_weights
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import first_line, open_filesystem
from ray_sr.training.checkpoints import CheckpointWriter
from ray_sr.training.compute import Compute
from ray_sr.training.memory import does_not_fit, size_that_fits, smaller_sizes
from ray_sr.training.preemption import PreemptionWatcher
from ray_sr.training.room import missing_room, worker_cpus
from ray_sr.training.state import TrainState, step_seed
from ray_sr.training.steps import GanStep, MicroBatch, build_step
from ray_sr.training.sync_batchnorm import synchronise_batchnorm
from ray_sr.training.teachers import place_teachers
from ray_sr.training.validation import Validator
from ray_sr.upscaling.accelerator import require_visible
from ray_sr.upscaling.tile_memory import DEVICE

MOST_BAD_STEPS = 10


@dataclass
class Meter:
    """Sums of what happened since the last log line. Losses stay on the device until they are read."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    wait: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], wait: float) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value
        self.steps += 1
        self.wait += wait

    def read(self) -> dict[str, float]:
        """Means over the steps, steps/s and the share of time spent waiting for data; starts anew."""
        means = {name: float(total) / self.steps for name, total in self.losses.items()}
        elapsed = time.perf_counter() - self.began
        means |= {"steps_per_s": self.steps / elapsed, "data_wait": self.wait / elapsed}
        self.losses, self.steps, self.wait, self.began = {}, 0, 0.0, time.perf_counter()
        return means


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: on the GPU where it trains on one, else in RAM."""
    if device.type == "cuda":
        return DEVICE.peak(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows_of(rank: int, world: int, begin: int, end: int) -> range:
    """A worker's rows of the stream from `begin` on: those whose number leaves its rank when divided by the world.

    So all rows of a step are used whatever the number of workers at hand, and each gets as many in the end.
    """
    return range(begin + (rank - begin) % world, end, world)


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on each worker. Errors a user can mend go to the driver as one line."""
    if ray.get(config["monitor"].refused.remote()):
        return
    worker: Worker | None = None
    try:
        worker = Worker(config)
        worker.run()
    except RaySRError as error:
        step = worker.state.step if worker else 0
        record = {"event": "error", "step": step, **described(error)}
        ray.get(config["monitor"].log.remote(record))
        if ray.train.get_context().get_world_size() > 1:
            raise  # the others may wait for this one: Ray Train ends them all


class Worker:
    """One of the workers of a run."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate(config["recipe"])
        self.monitor = config["monitor"]
        self.data_card = config["data"]
        if missing := missing_here(config["shared"]):
            raise not_shared(missing)
        self.stream: BatchStream = ray.get(config["stream"])
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.rows = self.recipe.rows_per_step
        torch.set_num_threads(self.recipe.training.threads or max(1, int(self.recipe.training.cpus_per_worker)))
        if config["gpu"]:
            require_visible(socket.gethostname())
        device = ray.train.torch.get_device()
        self.compute = Compute.of(self.recipe.training, device)
        self.state = TrainState(self.recipe, self.compute)
        self._restore(config)
        self.validator = Validator(self.recipe, self.compute, config["shards"], self.rank, self.world)
        self.notices = PreemptionWatcher(self.state.step, self._agree)
        self.meter = Meter()
        self.writer = CheckpointWriter(self.monitor)
        self.left_out = False
        self.wait = 0.0
        self.number = 0
        self.stop_answer: Any = None
        self.teachers = place_teachers(ray.get(config["teachers"]), self.compute)
        self.step = build_step(self.state, self.teachers, self._distributed)

    def run(self) -> None:
        """Train to the last step, or until the driver asks to stop; a checkpoint ends it either way."""
        self._announce()
        if self.state.done:
            return
        stopping = False
        batches = self._batches()
        while not self.state.done and not stopping:
            stage_ended = self._train_step(self._next_parts(batches))
            ending = stage_ended or self.state.done
            going = self._check_preemption()
            asked = self._asked_to_stop()
            stopping = self._log(ending or asked) or asked
            metrics = self._validate(ending)
            self._checkpoint(metrics, ending or stopping or going)
            if stage_ended:
                self.step = build_step(self.state, self.teachers, self._distributed)

    @property
    def stage(self) -> str:
        """The stage of the last step, which ends before the state moves to the next one."""
        return "gan" if isinstance(self.step, GanStep) else "pretrain"

    def _restore(self, config: dict[str, Any]) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.state.load(Path(folder))
        elif config["resume"] is not None:
            filesystem, path = open_filesystem(config["resume"])
            with Checkpoint(path, filesystem).as_directory() as folder:
                self.state.load(Path(folder))
        else:
            if config["init"] is not None:
                self.state.load_generator(ray.get(config["init"]))
            if config["init_discriminator"] is not None:
                self.state.load_discriminator(ray.get(config["init_discriminator"]))
        if self.state.step <= config["best_until"]:
            self.state.best = {}  # measured on other held-out photos than those of now

    def _distributed(self, module: nn.Module) -> nn.Module:
        if self.recipe.training.sync_batchnorm and self.world > 1:
            synchronise_batchnorm(module)
        if self.world > 1:
            devices = [self.compute.device] if self.compute.device.type == "cuda" else None
            module = nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        if self.recipe.training.compile:
            module.compile(dynamic=False)  # around DDP, or its exchange would wait for the whole backward pass
        return module

    def _leave_room(self) -> None:
        """Workers that move together after a node is lost may take the CPUs that make crops, and wait for ever."""
        missing = missing_room(self.world, worker_cpus(self.recipe.training)) if self.stream.by_tasks else None
        if missing:
            raise ResourceError(f"{missing}, or go on with --resume when the cluster has more")

    def _announce(self) -> None:
        if self.rank == 0:
            self._leave_room()
            record = {"event": "start", "step": self.state.step, "world": self.world}
            compute = "; ".join([self.compute.describe(), *self.state.generator.limits()])
            ray.get(self.monitor.log.remote({**record, "compute": compute, **self.data_card}))
            if too_small := self.validator.too_small:
                self.monitor.log.remote({"event": "too_small", "step": self.state.step, "photos": too_small})

    def _batches(self) -> Iterator[Batch]:
        """Of this worker's rows from here to the last step: see `rows_of`."""
        pinned = self.compute.device.type == "cuda"
        rows = rows_of(self.rank, self.world, self.state.step * self.rows, self.recipe.total_steps * self.rows)
        if self.stream.by_tasks:
            return ray_data_batches(self.stream, rows, pinned)
        return local_batches(self.stream, rows, spare_threads(self.recipe.training.cpus_per_worker), pinned)

    def _next_parts(self, batches: Iterator[Batch]) -> list[MicroBatch]:
        """This worker's parts of the step."""
        self.wait = 0.0
        begin = self.state.step * self.rows
        mine = rows_of(self.rank, self.world, begin, begin + self.rows)
        return [self._part(batches, row, row - begin) for row in mine]

    def _part(self, batches: Iterator[Batch], row: int, number: int) -> MicroBatch:
        began = time.perf_counter()
        batch = next(batches, None)
        self.wait += time.perf_counter() - began
        if batch is None:
            raise RuntimeError(f"the data stream ended at step {self.state.step} of {self.recipe.total_steps}")
        if batch.row != row:
            raise RuntimeError(f"the data stream is at row {batch.row}, training at {row}")
        seed = step_seed(self.recipe.seed, number, self.state.step)
        lr, hr = self.compute.to_input(batch.lr), self.compute.to_input(batch.hr)
        return MicroBatch(lr, hr, seed, self.world / self.rows)

    def _train_step(self, parts: list[MicroBatch]) -> bool:
        self.number = self.state.step_of_stage
        losses = self._attempt(parts)
        if losses is None:
            raise self._does_not_fit(parts)
        self.meter.add(losses, self.wait)
        return self.state.advance()

    def _attempt(self, parts: list[MicroBatch]) -> dict[str, Tensor] | None:
        """The step's losses; None where memory did not suffice, when all that it took is free again."""
        try:
            return self.step.run(parts, self.number)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            raise RecipeError(f"training.deterministic: {first_line(error)}: set it to false") from None

    def _does_not_fit(self, parts: list[MicroBatch]) -> ResourceError:
        """The run ends here, so trials may move the weights; other workers would wait for these for ever."""
        crops, accumulate = len(parts[0].lr), self.recipe.training.accumulate
        multiple = self.recipe.data.crops_per_image
        smaller = smaller_sizes(crops, multiple)
        remedy = "use smaller networks, a smaller data.crop or data.crops_per_image, or a larger GPU"
        if self.world > 1 and smaller:
            remedy = f"set training.accumulate={accumulate * crops // smaller[0]} or more, the batch stays whole"
        elif size := size_that_fits(parts, multiple, lambda fewer: self._attempt(fewer) is not None):
            remedy = f"{size} do: set training.accumulate={accumulate * crops // size}, the batch stays whole"
        return does_not_fit(self.state.step, crops, remedy, self.compute.device)

    def _log(self, ending: bool) -> bool:
        """Send a log line when one is due. True where the run is to stop."""
        if not ending and self.state.step % self.recipe.training.log_every:
            return False
        self._check_finite()
        if self.rank == 0:
            record = {
                "event": "train",
                "step": self.state.step,
                "stage": self.stage,
                "lr": self.step.optimizers[0].rate(self.number),
                "bad_steps": sum(float(o.bad) for o in self.step.optimizers),
                "memory_gib": peak_memory(self.compute.device) / 2**30,
                **self.meter.read(),
            }
            asked = self.stop_answer is not None and ray.get(self.stop_answer)
            self.stop_answer = self.monitor.log.remote(record)
        else:
            asked = False
        return bool(self._agree(asked))

    def _check_finite(self) -> None:
        if any(float(optimizer.bad_in_a_row) >= MOST_BAD_STEPS for optimizer in self.step.optimizers):
            raise RaySRError(
                f"step {self.state.step}: {MOST_BAD_STEPS} steps in a row had a loss that is not finite: lower the "
                "learning rate or the loss weights, then go on from the last checkpoint with --resume"
            )

    def _agree(self, value: float) -> float:
        """Rank 0's value on all ranks, so that all do the same at the same step."""
        if self.world == 1:
            return value
        shared = torch.tensor(float(value), device=self.compute.device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def _check_preemption(self) -> bool:
        """Whether a node is to go, as was not known before: a checkpoint is due while it is there."""
        notice = self.notices.new(self.state.step)
        if notice is None:
            return False
        if self.rank == 0:
            record = {"event": "notice", "step": self.state.step, "nodes": notice.nodes, "seconds": notice.seconds}
            self.monitor.log.remote(record)
        return True

    def _asked_to_stop(self) -> bool:
        """Asked when notices are looked for, so that a stop does not wait for the log line of slow steps."""
        if not self.notices.looked:
            return False
        return bool(self._agree(self.rank == 0 and ray.get(self.monitor.stopping.remote())))

    def _validate(self, ending: bool) -> dict[str, float]:
        if not self.validator.photos_in_all:
            return {}
        if not ending and self.state.step % self.recipe.validation.every:
            return {}
        metrics, sample = self.validator.run(self.state.ema)
        if self.rank == 0:
            self._keep_if_best(metrics["psnr_y"])
            record = {"event": "validation", "step": self.state.step, "stage": self.stage, **metrics}
            self.monitor.log.remote(record)
            self.monitor.log.remote({"event": "sample", "step": self.state.step, "png": sample})
        self.meter.began = time.perf_counter()
        return metrics

    def _keep_if_best(self, psnr_y: float) -> None:
        scores = self.state.best.setdefault(self.stage, [])
        scores.append(psnr_y)
        scores.sort(reverse=True)
        del scores[self.recipe.training.keep_best :]
        if psnr_y in scores:
            weights = encode_weights(self.state.ema.state_dict(), self.recipe.network)
            record = {"event": "best", "step": self.state.step, "stage": self.stage, "weights": weights}
            self.monitor.log.remote({**record, "psnr_y": psnr_y})

    def _checkpoint(self, metrics: dict[str, float], at_once: bool) -> None:
        """Every worker reports; rank 0 brings the checkpoint. `at_once`: whether due or not, and waited for."""
        if not at_once and (self.state.step % self.recipe.training.checkpoint_every or self._too_soon()):
            return
        snapshot = self.state.snapshot() if self.rank == 0 else None
        summary = {"step": self.state.step, "stage": self.stage, **metrics}
        self.writer.report(summary, snapshot, wait=at_once)
        self.meter.began = time.perf_counter()

    def _too_soon(self) -> bool:
        """Whether the former checkpoint is still being written; the first one that is left out is said."""
        busy = bool(self._agree(self.writer.busy))
        if busy and self.rank == 0 and not self.left_out:
            self.monitor.log.remote({"event": "left_out", "step": self.state.step})
        self.left_out = self.left_out or busy
        return busy
