"""The typed recipe: what to train, on what, how. The one source of options, defaults and documentation.

A recipe is YAML checked against these classes when it is read (see `recipe_reader`); the field
descriptions are the reference documentation and the JSON schema is generated from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field, model_validator

from ray_sr.recipes.degradations import DegradationSpec, DownscaleSpec
from ray_sr.recipes.losses import LEAST_SIDES, FeaturesSpec
from ray_sr.recipes.networks import DiscriminatorSpec, GeneratorSpec, NetworkSpec, SRResNetSpec
from ray_sr.recipes.section import Scale, Section, ValueRange
from ray_sr.recipes.training import DataSpec, GanSpec, PretrainSpec, TrainingSpec, ValidationSpec


class Recipe(Section):
    """One training run, from the shards to the published generator."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run"
    )
    description: str = Field("", description="one or two sentences for people")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, crops and degradations")
    scale: Scale = Field(4, description="HR size / LR size; 1 for deblurring")
    value_range: ValueRange = Field(
        "unit", description="values inside the networks: unit is [0, 1], signed is [-1, 1]"
    )
    data: DataSpec = DataSpec()
    degradation: list[DegradationSpec] = Field(
        [DownscaleSpec()], min_length=1, description="steps from HR to LR, in order"
    )
    generator: GeneratorSpec = SRResNetSpec()
    discriminator: DiscriminatorSpec | None = Field(None, description="needed by the gan stage")
    init: str | None = Field(
        None,
        description="model whose weights the generator starts from (store name, folder or file); from a "
        "model of another scale, all but the upsampling layers are taken; from a deeper one, some "
        "of its blocks",
    )
    init_blocks: list[int] | None = Field(
        None, description="indices (from 0) of the blocks taken from a deeper init; evenly spaced by default"
    )
    init_discriminator: str | None = Field(
        None,
        description="weights that the discriminator starts from: a file, or the folder of a checkpoint of a run",
    )
    pretrain: PretrainSpec | None = Field(None, description="first stage; omit it to begin with the second")
    gan: GanSpec | None = Field(None, description="second stage; omit it to end with the first")
    features: FeaturesSpec = FeaturesSpec()
    validation: ValidationSpec = ValidationSpec()
    training: TrainingSpec = TrainingSpec()

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec(scale=self.scale, value_range=self.value_range, generator=self.generator)

    @property
    def rows_per_step(self) -> int:
        """Parts that the batch of a step is made and computed in, whatever the number of workers at hand."""
        return self.training.workers * self.training.accumulate

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in (self.pretrain, self.gan) if stage)

    def dump(self) -> dict[str, Any]:
        """Plain dict of every field, as YAML, checkpoints and published models store it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if found := contradictions(self):
            raise ValueError("\n".join(found))
        return self


# ------------------------------------------------------------------- what cannot go together


def contradictions(recipe: Recipe) -> list[str]:
    """One sentence for each pair of settings that cannot be used together, with the remedy."""
    checks = (_stages, _scale, _crops, _features, _workers, _degradation, _schedules)
    return [sentence for check in checks for sentence in check(recipe)]


def _stages(recipe: Recipe) -> Iterator[str]:
    if recipe.pretrain is None and recipe.gan is None:
        yield "no stage: add pretrain, gan or both"
    if recipe.init_discriminator and (recipe.gan is None or recipe.discriminator is None):
        yield "init_discriminator needs a discriminator and the gan stage: add both, or remove it"
    if recipe.gan and recipe.discriminator is None:
        yield "the gan stage needs a discriminator: add one"
    if recipe.gan and getattr(recipe.discriminator, "sigmoid", False):
        kind = recipe.gan.adversarial.kind
        if kind not in ("wasserstein", "lsgan"):
            yield f"gan.adversarial {kind} takes logits: set discriminator.sigmoid to false"


def _scale(recipe: Recipe) -> Iterator[str]:
    if recipe.scale not in recipe.generator.scales:
        offered = ", ".join(f"x{scale}" for scale in recipe.generator.scales)
        yield f"generator {recipe.generator.kind} has no x{recipe.scale}: it offers {offered}"


def _crops(recipe: Recipe) -> Iterator[str]:
    crop, critic = recipe.data.crop, recipe.discriminator
    if crop % recipe.scale:
        yield f"data.crop {crop} is not a multiple of scale {recipe.scale}"
    if critic is None:
        return
    if crop < critic.minimum_crop:
        yield f"discriminator {critic.kind} needs data.crop {critic.minimum_crop} or more, not {crop}"
    made_for = getattr(critic, "input_size", None)
    if made_for is not None and made_for != crop:
        yield f"discriminator {critic.kind} is made for {made_for} px, data.crop is {crop}: make them equal"


def _features(recipe: Recipe) -> Iterator[str]:
    losses = [loss for stage in (recipe.pretrain, recipe.gan) if stage for loss in stage.losses]
    deep = any(loss.kind == "perceptual" and any("conv5" in name for name in loss.layers) for loss in losses)
    if deep and recipe.data.crop < 16:
        yield f"perceptual layers of block 5 need data.crop 16 or more, not {recipe.data.crop}"
    for loss in losses:
        if loss.kind == "ldl" and not recipe.training.ema:
            yield "ldl compares with the averaged generator: give training.ema, or remove it"
        if loss.kind == "lpips" and recipe.data.crop < LEAST_SIDES[loss.network]:
            need = f"lpips ({loss.network}) needs data.crop {LEAST_SIDES[loss.network]} or more"
            yield f"{need}, not {recipe.data.crop}"
        if loss.kind == "dists" and recipe.data.crop < 16:
            yield f"dists needs data.crop 16 or more, not {recipe.data.crop}"
        if loss.kind == "ms_ssim" and recipe.data.crop < loss.minimum_crop:
            need = f"ms_ssim with {loss.levels} levels needs data.crop {loss.minimum_crop} or more"
            yield f"{need}, not {recipe.data.crop}: fewer levels need less"


def _workers(recipe: Recipe) -> Iterator[str]:
    batch, training, rows = recipe.data.batch, recipe.training, recipe.rows_per_step
    among = f"training.workers {training.workers}"
    if training.accumulate > 1:
        among += f" with training.accumulate {training.accumulate}"
    if batch % rows:
        yield f"data.batch {batch} cannot be divided among {among}"
    elif (batch // rows) % recipe.data.crops_per_image:
        yield (
            f"data.crops_per_image {recipe.data.crops_per_image} does not divide the batch of one worker"
            f"{' and part' if training.accumulate > 1 else ''}, {batch // rows}"
        )
    if training.min_workers and training.min_workers > training.workers:
        yield f"training.min_workers {training.min_workers} is more than {among}"
    if training.min_workers and training.sync_batchnorm:
        yield "training.min_workers gives workers unequal parts of a batch: set sync_batchnorm to false"
    if training.accumulate > 1 and training.sync_batchnorm:
        yield "training.accumulate shows BatchNorm a part of the batch at a time: set sync_batchnorm to false"
    if training.compile and recipe.gan and recipe.gan.adversarial.gradient_penalty:
        yield "training.compile has no second derivatives for gan.adversarial.gradient_penalty: set it to false"
    if training.compile and recipe.gan and recipe.gan.adversarial.feature_matching:
        yield "training.compile hides the features that gan.adversarial.feature_matching compares: set it to false"
    if training.gpus_per_worker < 1 and training.workers > 1:
        yield "NCCL needs a whole GPU for each worker: set training.gpus_per_worker to 1 or training.workers to 1"


def _degradation(recipe: Recipe) -> Iterator[str]:
    kinds = [step.kind for step in recipe.degradation]
    shrinking = sum(kind in ("downscale", "second_order") for kind in kinds)
    if "pairs" in kinds:
        if kinds != ["pairs"]:
            yield "degradation pairs stands alone: the input photos come from a folder as they are"
    elif recipe.scale == 1 and "downscale" in kinds:
        yield "scale 1 has nothing to downscale: remove that degradation step"
    elif recipe.scale > 1 and shrinking != 1:
        yield f"x{recipe.scale} needs one downscale or second_order step in degradation, not {shrinking}"


def _schedules(recipe: Recipe) -> Iterator[str]:
    for name in ("pretrain", "gan"):
        stage = getattr(recipe, name)
        if stage is None:
            continue
        schedule = stage.schedule
        if schedule.kind == "multistep" and not schedule.milestones:
            yield f"{name}.schedule multistep needs milestones"
        if schedule.milestones != sorted(schedule.milestones):
            yield f"{name}.schedule.milestones are not in rising order"
        if schedule.decay and schedule.kind != "wsd":
            yield f"{name}.schedule.decay belongs to wsd, not to {schedule.kind}: remove it"
        if schedule.kind == "wsd" and schedule.decay + schedule.warmup > stage.steps:
            yield f"{name}.schedule wsd: warmup and decay are longer than the stage of {stage.steps} steps"
        if schedule.kind == "linear" and schedule.start >= stage.steps:
            yield f"{name}.schedule.start {schedule.start} is not before the last step {stage.steps}"
