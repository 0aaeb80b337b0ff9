"""The typed recipe: what to train, on what, how. The one source of options, defaults and documentation.

A recipe is YAML checked against these classes when it is read (see `recipe_reader`); the field
descriptions are the reference documentation and the JSON schema is generated from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_sr.recipe_checks import contradictions
from ray_sr.recipe_networks import (
    DiscriminatorSpec,
    GeneratorSpec,
    NetworkSpec,
    Scale,
    Section,
    SRResNetSpec,
    ValueRange,
)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Target = Annotated[
    Literal["hr", "sharpened"],
    Field(description="what the output is compared with: HR, or HR sharpened as by the degradation `sharpen`"),
]


def _ordered(low_high: tuple[float, float]) -> tuple[float, float]:
    if low_high[0] > low_high[1]:
        raise ValueError(f"the range [{low_high[0]}, {low_high[1]}] is upside down: write [low, high]")
    return low_high


# -------------------------------------------------------------------------------------------- losses


class PixelLossSpec(Section):
    """Distance of pixels: mean absolute, mean squared, or Charbonnier sqrt(d² + eps²)."""

    kind: Literal["l1", "mse", "charbonnier"] = "l1"
    weight: Positive = Field(1.0, description="factor of this term")
    eps: Positive = Field(1e-3, description="Charbonnier's eps")
    target: Target = "hr"


class PerceptualLossSpec(Section):
    """Distance of feature maps of a classification network."""

    kind: Literal["perceptual"] = "perceptual"
    weight: Positive = Field(1.0, description="factor of this term")
    network: Literal["vgg19", "vgg16", "random"] = Field(
        "vgg19",
        description="feature network; random: an untrained one, for machines without VGG weights",
    )
    layers: dict[str, Positive] = Field(
        {"conv5_4": 1.0}, min_length=1, description="layers by name (convI_J) with their weights"
    )
    activation: Literal["before", "after"] = Field("after", description="take features before or after ReLU")
    distance: Literal["mse", "l1"] = Field("mse", description="distance between the feature maps")
    normalise: bool = Field(True, description="give the network ImageNet-normalised input")
    signed: bool = Field(
        False, description="without normalise: give the network values in [-1, 1] instead of [0, 1]"
    )
    target: Target = "hr"

    @field_validator("layers")
    @classmethod
    def _known_layers(cls, layers: dict[str, float]) -> dict[str, float]:
        depth = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}
        known = [f"conv{i}_{j}" for i, n in depth.items() for j in range(1, n + 1)]
        if unknown := [name for name in layers if name not in known]:
            raise ValueError(f"no layer {unknown[0]!r}: layers are conv1_1 to conv5_4")
        return layers

    @model_validator(mode="after")
    def _layer_of_network(self) -> Self:
        if self.network == "vgg16" and (absent := [name for name in self.layers if name.endswith("_4")]):
            raise ValueError(f"VGG16 has no {absent[0]}: its blocks 3 to 5 end at _3")
        return self

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        if self.normalise and self.signed:
            raise ValueError("normalise and signed are two ranges of the input: set normalise to false")
        return self


class ColourLossSpec(Section):
    """Colour alone: each photo's mean colour, its soft histogram of each channel, or L1 of the pixels' chroma."""

    kind: Literal["mean_colour", "histogram", "chroma"] = "mean_colour"
    weight: Positive = Field(1.0, description="factor of this term")
    bins: int = Field(32, ge=2, le=256, description="bins of the histogram")


class TotalVariationSpec(Section):
    """Total variation of the output."""

    kind: Literal["tv"] = "tv"
    weight: Positive = Field(1.0, description="factor of this term")


LossSpec = Annotated[
    PixelLossSpec | PerceptualLossSpec | ColourLossSpec | TotalVariationSpec, Field(discriminator="kind")
]


class AdversarialSpec(Section):
    """What makes the generator's output look real."""

    kind: Literal["bce", "lsgan", "hinge", "wasserstein", "relativistic"] = Field(
        "bce",
        description="bce with logits, least squares, hinge, Wasserstein, or relativistic average (bce)",
    )
    weight: Positive = Field(1e-3, description="factor of the generator's adversarial term")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="real labels become 1 - this (bce, lsgan)")
    label_noise: float = Field(0.0, ge=0, lt=0.5, description="labels move inwards by U(0, this) (bce, lsgan)")
    weight_clip: Positive | None = Field(None, description="clip the critic's weights to ± this (wasserstein)")
    gradient_penalty: NonNegative = Field(0.0, description="factor of the gradient penalty (wasserstein: 10)")
    critic_updates: int = Field(1, ge=1, le=20, description="discriminator updates for each generator update")
    pause_above: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="the discriminator skips its update where it tells more than this share of a batch rightly",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind != "wasserstein" and self.weight_clip is not None:
            raise ValueError(f"weight_clip belongs to wasserstein, not to {self.kind}: remove it")
        if self.kind not in ("bce", "lsgan") and (self.label_smoothing or self.label_noise):
            raise ValueError(f"{self.kind} has no labels: remove label_smoothing and label_noise")
        if self.label_smoothing + self.label_noise >= 0.5:
            raise ValueError("label_smoothing and label_noise together must stay below 0.5")
        return self


class FeaturesSpec(Section):
    """Where the VGG weights of perceptual losses come from."""

    weights: str | None = Field(
        None,
        description="torchvision's .pth file, or a Caffe-trained .npz (conv1_1 to conv3_4, BGR); "
        "without it torchvision's download or cache",
    )


# -------------------------------------------------------------------------------------- degradations

BlurKernel = Literal[
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
    "sinc",
]
Range = tuple[NonNegative, NonNegative]
KernelSize = Annotated[int, Field(ge=3, le=63)]


class DownscaleSpec(Section):
    """Shrink by the recipe's scale."""

    kind: Literal["downscale"] = "downscale"
    method: Literal["bicubic", "bilinear", "area"] = Field(
        "bicubic", description="antialiased; bicubic is MATLAB's imresize"
    )


class BlurSpec(Section):
    """Convolve with a random blur kernel."""

    kind: Literal["blur"] = "blur"
    probability: Probability = Field(1.0, description="how often this step is applied")
    kernels: dict[BlurKernel, Positive] = Field(
        {"isotropic": 1.0}, min_length=1, description="kernel kinds with their relative frequency"
    )
    size: tuple[KernelSize, KernelSize] = Field(
        (7, 21), description="smallest and largest kernel size; odd sizes between"
    )
    sigma: Range = Field((0.2, 3.0), description="range of the standard deviation in pixels")

    _ordered = field_validator("size", "sigma")(_ordered)


class NoiseSpec(Section):
    """Add Gaussian or Poisson noise, in colour or gray."""

    kind: Literal["noise"] = "noise"
    probability: Probability = Field(1.0, description="how often this step is applied")
    gaussian: Probability = Field(0.5, description="share of Gaussian noise; the rest is Poisson")
    sigma: Range = Field((1.0, 30.0), description="standard deviation of Gaussian noise, of 255")
    poisson_scale: Range = Field((0.05, 3.0), description="strength of Poisson noise")
    gray: Probability = Field(0.4, description="how often the noise is the same in all channels")

    _ordered = field_validator("sigma", "poisson_scale")(_ordered)


class CompressionSpec(Section):
    """Encode and decode with a lossy codec."""

    kind: Literal["jpeg", "webp"] = "jpeg"
    probability: Probability = Field(1.0, description="how often this step is applied")
    quality: tuple[int, int] = Field((30, 95), description="range of the quality, 1 to 100")

    @field_validator("quality")
    @classmethod
    def _quality(cls, quality: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= quality[0] <= quality[1] <= 100:
            raise ValueError(f"quality is [low, high] within 1 to 100, not {list(quality)}")
        return quality


class SharpenSpec(Section):
    """Unsharp mask, as Real-ESRGAN applies it before degrading: Gaussian of sigma 8, amount 0.5, threshold 10."""

    kind: Literal["sharpen"] = "sharpen"


class SecondOrderSpec(Section):
    """Real-ESRGAN's second-order degradation (arXiv 2107.10833): blur, resize, noise, JPEG, twice, sinc."""

    kind: Literal["second_order"] = "second_order"
    strength: float = Field(
        1.0, gt=0, le=1, description="1 is Real-ESRGAN's; less narrows every range towards no change"
    )


class MotionBlurSpec(Section):
    """Camera shake: a random trajectory turned into a kernel (Boracchi and Foi 2012; DeblurGAN)."""

    kind: Literal["motion_blur"] = "motion_blur"
    probability: Probability = Field(1.0, description="how often this step is applied")
    size: int = Field(31, ge=3, le=127, description="side of the kernel in pixels")
    exposure: tuple[Probability, Probability] = Field(
        (0.1, 1.0), description="range of the exposed fraction of the trajectory"
    )
    gamma: Positive = Field(1.0, description="blur in linear light of this gamma; 1 blurs the stored values")

    _ordered = field_validator("exposure")(_ordered)


class PairsSpec(Section):
    """No made degradation: the input photo comes from a second folder (`data prepare --inputs`)."""

    kind: Literal["pairs"] = "pairs"


DegradationSpec = Annotated[
    DownscaleSpec
    | BlurSpec
    | NoiseSpec
    | CompressionSpec
    | SharpenSpec
    | SecondOrderSpec
    | MotionBlurSpec
    | PairsSpec,
    Field(discriminator="kind"),
]


# ---------------------------------------------------------------------------------- data and training


class DataSpec(Section):
    """Shards and how crops are cut from them."""

    shards: str | None = Field(None, description="folder or URI made by `ray-sr data prepare`; --data overrides")
    crop: int = Field(96, ge=8, le=2048, description="side of an HR crop in pixels")
    batch: int = Field(16, ge=1, le=4096, description="crops in a training step, all workers together")
    crops_per_image: int = Field(4, ge=1, le=256, description="crops cut from a sub-image each time it is decoded")
    flips: bool = Field(True, description="flip crops at random")
    rotations: bool = Field(True, description="turn crops by 90 degrees at random")
    cache: Literal["auto", "memory", "stream"] = Field(
        "auto",
        description="keep decoded sub-images in memory, or decode them anew; auto: memory if they fit",
    )
    degrade_in: Literal["auto", "tasks", "worker"] = Field(
        "auto",
        description="where crops are made: in Ray Data tasks on any CPU, or in a thread of the training worker; "
        "auto: what is measured to be faster",
    )
    damaged: Literal["stop", "skip"] = Field(
        "stop", description="a damaged shard stops training, or is left out (all shards are checked first)"
    )


class OptimizerSpec(Section):
    """Adam, AdamW, or Muon: orthogonal steps for inner layers (Jordan and others, 2024), AdamW for all else."""

    kind: Literal["adam", "adamw", "muon"] = "adam"
    lr: float = Field(
        1e-4, gt=0, le=1, description="learning rate; muon: of biases, of the first and the last layer"
    )
    matrix_lr: float = Field(
        0.005, gt=0, le=1, description="muon: learning rate of inner layers, the spectral norm of a step"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="muon: decay of the mean of gradients")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moments")
    eps: Positive = Field(1e-8, description="term in the denominator")
    weight_decay: NonNegative = Field(0.0, description="weight decay")

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both betas are in [0, 1), not {list(betas)}")
        return betas


class ScheduleSpec(Section):
    """Learning rate over the steps of a stage."""

    kind: Literal["constant", "multistep", "cosine", "linear"] = "constant"
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    milestones: list[int] = Field([], description="multistep: steps at which the rate is multiplied by gamma")
    gamma: float = Field(0.5, gt=0, le=1, description="multistep: factor at each milestone")
    final: float = Field(0.0, ge=0, le=1, description="cosine, linear: rate at the end, as share of the first")
    start: int = Field(0, ge=0, description="linear: step at which the decay begins")
    cycles: int = Field(1, ge=1, description="cosine: how often it runs from the first rate to the final one")


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
    photos: int = Field(16, ge=0, le=10_000, description="at most this many held-out photos; 0 for none")


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class TrainingSpec(Section):
    """Workers, devices, precision, and what is kept."""

    workers: int = Field(1, ge=1, le=4096, description="DDP workers")
    min_workers: int | None = Field(
        None, ge=1, description="go on with as few workers as this while others are missing; the batch stays whole"
    )
    accumulate: int = Field(1, ge=1, description="parts of a worker's batch, one after another: needs less memory")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="gpu: GPUs for each worker")
    gpus_per_worker: Positive = Field(1.0, description="GPUs of a worker; a share of one only for a single worker")
    placement: Literal["pack", "spread"] = Field("pack", description="workers on few nodes, or on many")
    cpus_per_worker: Positive = Field(1.0, description="CPUs reserved for each worker")
    threads: int | None = Field(None, ge=1, description="torch threads of a worker; by default its CPUs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 runs the networks in autocast; auto: bf16 where the device computes in it"
    )
    channels_last: bool = Field(True, description="NHWC memory layout inside the networks")
    compile: bool = Field(False, description="torch.compile both networks")
    tf32: bool = Field(True, description="float32 products of a GPU may round to TF32 (10 bits of mantissa)")
    sync_batchnorm: bool = Field(False, description="BatchNorm statistics over the batch of all workers")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged generator, lower at first; 0 for none")
    clip_gradients: Positive | None = Field(None, description="largest norm of each network's gradient")
    log_every: int = Field(50, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="how many of the last checkpoints are kept")
    keep_best: int = Field(1, ge=0, description="how many generators of a stage are kept for their PSNR-Y")
    trackers: list[TrackerName] = Field([], description="experiment trackers that get every figure")
    max_failures: int = Field(3, ge=0, description="how often a lost worker is replaced from the last checkpoint")


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
        [DownscaleSpec()], min_length=1, description="steps from HR to LR, in their order"
    )
    generator: GeneratorSpec = SRResNetSpec()
    discriminator: DiscriminatorSpec | None = Field(None, description="needed by the gan stage")
    init: str | None = Field(
        None,
        description="model whose weights the generator starts from (store name, folder or file); one of another "
        "scale gives what fits: all but what enlarges",
    )
    pretrain: PretrainSpec | None = Field(None, description="first stage; left out: none")
    gan: GanSpec | None = Field(None, description="second stage; left out: none")
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
