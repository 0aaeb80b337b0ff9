"""The recipe's training: data, optimizers, schedules, both stages, validation and workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ray_sr.recipes.losses import AdversarialSpec, LossSpec, PerceptualLossSpec, PixelLossSpec
from ray_sr.recipes.section import NonNegative, Positive, Section

# ---------------------------------------------------------------------------------- data and training


class DataSpec(Section):
    """Shards and how crops are cut from them."""

    shards: str | None = Field(None, description="folder or URI made by `ray-sr data prepare`; --data overrides")
    crop: int = Field(96, ge=8, le=2048, description="side of an HR crop in pixels")
    batch: int = Field(16, ge=1, le=4096, description="crops in a training step, all workers together")
    crops_per_image: int = Field(4, ge=1, le=256, description="crops cut from a sub-image each time it is decoded")
    flips: bool = Field(True, description="flip crops at random")
    rotations: bool = Field(True, description="rotate crops by multiples of 90 degrees at random")
    cache: Literal["auto", "memory", "stream"] = Field(
        "auto",
        description="memory: keep decoded sub-images; stream: decode them each time; auto: memory if they fit",
    )
    degrade_in: Literal["auto", "tasks", "worker"] = Field(
        "auto",
        description="where crops are made: in Ray Data tasks on any CPU, or in a thread of the training worker; "
        "auto: whichever is faster, as measured at the start",
    )
    damaged: Literal["stop", "skip"] = Field(
        "stop",
        description="stop: a damaged shard ends training; skip: it is left out (all shards are checked first)",
    )


class OptimizerSpec(Section):
    """The optimizer of a stage.

    adam, adamw; muon: orthogonalised updates of hidden layers (Jordan et al., 2024), AdamW for the rest. By the
    library pytorch-optimizer: schedulefree, AdamW whose average of all weights needs no schedule (arXiv
    2405.15682); adan (arXiv 2208.06677); soap (arXiv 2409.11321).
    """

    kind: Literal["adam", "adamw", "muon", "schedulefree", "adan", "soap"] = "adam"
    lr: float = Field(
        1e-4, gt=0, le=1, description="learning rate; muon: of biases, of the first and the last layer"
    )
    matrix_lr: float = Field(
        0.005, gt=0, le=1, description="muon: learning rate of hidden layers, the spectral norm of an update"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="muon: decay rate of the gradients' average")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of the two moments")
    beta_difference: float = Field(
        0.92, ge=0, lt=1, description="adan: decay rate of the average of gradient differences"
    )
    eps: Positive = Field(1e-8, description="term added to the denominator")
    weight_decay: NonNegative = Field(0.0, description="weight decay")

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both betas are in [0, 1), not {list(betas)}")
        return betas


class ScheduleSpec(Section):
    """Learning rate over the steps of a stage."""

    kind: Literal["constant", "multistep", "cosine", "linear", "wsd"] = Field(
        "constant",
        description="wsd: warm-up, stable, decay (arXiv 2405.18392): a run can be prolonged until it decays",
    )
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    milestones: list[int] = Field(
        [], description="multistep: steps at which the learning rate is multiplied by gamma"
    )
    gamma: float = Field(0.5, gt=0, le=1, description="multistep: factor at each milestone")
    final: float = Field(
        0.0, ge=0, le=1, description="cosine, linear, wsd: final learning rate, as a fraction of the initial one"
    )
    start: int = Field(0, ge=0, description="linear: step at which the decay begins")
    decay: int = Field(0, ge=0, description="wsd: steps of decay before the end; 0: a fifth of the stage")
    cycles: int = Field(
        1, ge=1, description="cosine: number of cycles, each from the initial learning rate to the final one"
    )


class PretrainSpec(Section):
    """First stage: the generator alone, by content losses."""

    steps: int = Field(1_000_000, ge=1, description="number of steps")
    losses: list[LossSpec] = Field([PixelLossSpec(kind="mse")], min_length=1, description="content losses")
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()


class GanSpec(Section):
    """Second stage: generator against discriminator, from the weights of the first."""

    steps: int = Field(200_000, ge=1, description="number of generator steps")
    losses: list[LossSpec] = Field([PerceptualLossSpec()], description="content losses")
    adversarial: AdversarialSpec = AdversarialSpec()
    generator_optimizer: OptimizerSpec = OptimizerSpec()
    discriminator_optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = Field(ScheduleSpec(), description="of both optimizers")


class ValidationSpec(Section):
    """Measured on whole held-out photos with the EMA weights."""

    every: int = Field(5000, ge=1, description="steps between validations")
    photos: int = Field(16, ge=0, le=10_000, description="maximum number of held-out photos; 0 disables validation")


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class TrainingSpec(Section):
    """Workers, devices, precision, and what is kept."""

    workers: int = Field(1, ge=1, le=4096, description="DDP workers")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="continue with as few workers as this while others are missing; the batch size stays the same",
    )
    accumulate: int = Field(
        1, ge=1, description="gradient accumulation: micro-batches of a worker in a step, to save memory"
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto: GPUs where there are any; gpu: only on GPUs"
    )
    gpus_per_worker: Positive = Field(1.0, description="GPUs per worker; a fraction only for a single worker")
    placement: Literal["pack", "spread"] = Field(
        "pack", description="pack: workers on as few nodes as possible; spread: on as many as possible"
    )
    cpus_per_worker: Positive = Field(1.0, description="CPUs reserved per worker")
    threads: int | None = Field(None, ge=1, description="torch threads of a worker; as many as its CPUs by default")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 runs the networks in autocast; auto: bf16 where the hardware supports it"
    )
    channels_last: bool = Field(True, description="NHWC memory layout inside the networks")
    compile: bool = Field(False, description="torch.compile both networks")
    tf32: bool = Field(True, description="let float32 products on GPUs be rounded to TF32 (10 bits of mantissa)")
    deterministic: bool = Field(
        False,
        description="on GPUs, use only algorithms with bitwise repeatable results, which are slower; on CPUs "
        "they always are",
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm statistics over the batch of all workers")
    ema: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of the averaged (EMA) generator, lower in the first steps; 0 disables it",
    )
    clip_gradients: Positive | None = Field(None, description="clip each network's gradient to this norm")
    log_every: int = Field(50, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="how many of the last checkpoints are kept")
    keep_best: int = Field(
        1, ge=0, description="how many generators of each stage are kept, those with the highest PSNR-Y"
    )
    trackers: list[TrackerName] = Field([], description="experiment trackers that receive all logged values")
    max_failures: int = Field(
        3, ge=0, description="how many times a lost worker is replaced, continuing from the last checkpoint"
    )
