"""The recipe's networks: every generator and discriminator with its options."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from ray_sr.recipes import architectures
from ray_sr.recipes.section import Scale, Section, ValueRange

CHECK_ARCHITECTURES = "check architectures"
"""Key of a validation context: where it is true, spandrel is asked whether it has such a network."""

# ---------------------------------------------------------------------------------------- generators


class SRResNetSpec(Section):
    """SRResNet of the SRGAN paper (arXiv 1609.04802): BatchNorm, PReLU, 9x9 first and last layer, pixel shuffle."""

    scales: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    kind: Literal["srresnet"] = "srresnet"
    blocks: int = Field(16, ge=1, le=256, description="number of residual blocks")
    channels: int = Field(64, ge=4, le=1024, description="feature channels")


class MSRResNetSpec(Section):
    """SRResNet without BatchNorm and with a bilinear skip, as BasicSR and MMagic train it."""

    scales: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    kind: Literal["msrresnet"] = "msrresnet"
    blocks: int = Field(16, ge=1, le=256, description="number of residual blocks")
    channels: int = Field(64, ge=4, le=1024, description="feature channels")
    upsampling: Literal["progressive", "direct"] = Field(
        "progressive",
        description="progressive: pixel shuffles by 2 or 3, then two convolutions at full size; "
        "direct: one convolution and one pixel shuffle, all work at low resolution",
    )


class RRDBNetSpec(Section):
    """Residual-in-residual dense blocks, the generator of ESRGAN (arXiv 1809.00219)."""

    scales: ClassVar[tuple[int, ...]] = (1, 2, 4)
    kind: Literal["rrdbnet"] = "rrdbnet"
    blocks: int = Field(23, ge=1, le=128, description="number of residual-in-residual dense blocks")
    channels: int = Field(64, ge=4, le=1024, description="feature channels")
    growth: int = Field(32, ge=4, le=256, description="channels that each dense convolution adds")


class CompactSpec(Section):
    """SRVGGNetCompact, Real-ESRGAN's fast generator: a plain stack at low resolution, then pixel shuffle."""

    scales: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 8)
    kind: Literal["compact"] = "compact"
    convs: int = Field(16, ge=1, le=128, description="number of 3x3 convolutions in the body")
    channels: int = Field(64, ge=4, le=1024, description="feature channels")
    activation: Literal["prelu", "relu", "leakyrelu"] = Field("prelu", description="activation in the body")


class UpResNetSpec(Section):
    """Residual blocks with one BatchNorm each, and parameter-free upsampling."""

    scales: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    kind: Literal["upresnet"] = "upresnet"
    blocks: int = Field(8, ge=1, le=256, description="number of residual blocks")
    channels: int = Field(64, ge=4, le=1024, description="feature channels")


class DeblurGANSpec(Section):
    """DeblurGAN's generator (arXiv 1711.07064): two stride-2 convolutions, residual blocks, global skip."""

    scales: ClassVar[tuple[int, ...]] = (1,)
    kind: Literal["deblurgan"] = "deblurgan"
    blocks: int = Field(9, ge=1, le=64, description="number of residual blocks")
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution; doubled twice")
    norm: Literal["batch", "instance", "none"] = Field("instance", description="normalisation after convolutions")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout inside the residual blocks")
    upsampling: Literal["transposed", "nearest"] = Field(
        "transposed", description="transposed convolution (the paper), or nearest x2 and a convolution"
    )


class SPANSpec(Section):
    """Swift Parameter-free Attention Network (arXiv 2311.12770): few wide layers, attention from their output."""

    scales: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 8)
    kind: Literal["span"] = "span"
    blocks: int = Field(6, ge=1, le=64, description="number of blocks, three 3x3 convolutions each")
    channels: int = Field(48, ge=4, le=512, description="feature channels")
    branches: bool = Field(
        True, description="train each 3x3 convolution as four, which are merged into one (reparameterisation)"
    )
    skip: bool = Field(False, description="add the bilinearly upscaled input; published weights do without")
    published_input: bool = Field(
        False, description="subtract DIV2K's mean colour and multiply by 255, as most published weights expect"
    )


class RLFNSpec(Section):
    """Residual Local Feature Network (arXiv 2205.07514): blocks of three 3x3 convolutions and spatial attention."""

    scales: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 8)
    kind: Literal["rlfn"] = "rlfn"
    blocks: int = Field(6, ge=1, le=64, description="number of blocks")
    channels: int = Field(52, ge=4, le=512, description="feature channels")
    inner: int | None = Field(None, ge=4, le=512, description="channels inside a block; by default the same")
    attention: int = Field(16, ge=1, le=256, description="channels of the spatial attention")
    skip: bool = Field(False, description="add the bilinearly upscaled input; published weights do without")
    published_input: bool = Field(
        False, description="work on values in [0, 255], as NTIRE's published weights expect"
    )


class SpandrelSpec(Section):
    """Any image architecture of the library spandrel (`ray-sr recipes architectures` lists them)."""

    scales: ClassVar[tuple[int, ...]] = architectures.SCALES
    kind: Literal["spandrel"] = "spandrel"
    architecture: str = Field(min_length=1, description="name of the architecture: SPAN, SwinIR, RealPLKSR …")
    options: dict[str, Any] = Field({}, description="options of the architecture; the others keep its defaults")

    @model_validator(mode="before")
    @classmethod
    def _with_presets(cls, data: Any) -> Any:
        """What an architecture needs beyond its own defaults is written out: so it stays, whatever changes here."""
        given = data.get("options", {}) if isinstance(data, dict) else None
        if not isinstance(given, dict) or not isinstance(data.get("architecture"), str):
            return data
        return {**data, "options": {**architectures.PRESETS.get(data["architecture"], {}), **given}}

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, dict) and info.context.get(CHECK_ARCHITECTURES):
            architectures.check(self.architecture, self.options)
        return self


GeneratorSpec = Annotated[
    SRResNetSpec
    | MSRResNetSpec
    | RRDBNetSpec
    | CompactSpec
    | UpResNetSpec
    | DeblurGANSpec
    | SPANSpec
    | RLFNSpec
    | SpandrelSpec,
    Field(discriminator="kind"),
]


class NetworkSpec(Section):
    """All that is needed to rebuild a generator: stored beside its weights wherever they go."""

    scale: Scale = Field(4, description="output size / input size")
    value_range: ValueRange = Field(
        "unit", description="values inside the networks: unit is [0, 1], signed is [-1, 1]"
    )
    generator: GeneratorSpec


# ------------------------------------------------------------------------------------ discriminators


class SRGANDiscriminatorSpec(Section):
    """The SRGAN paper's discriminator: eight 3x3 convolutions, dense 1024, dense 1 (logit)."""

    minimum_crop: ClassVar[int] = 16
    kind: Literal["srgan"] = "srgan"
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")
    hidden: int = Field(1024, ge=1, le=8192, description="units of the dense layer")


class VGGDiscriminatorSpec(Section):
    """VGG-style discriminator as in BasicSR: 3x3 and strided 4x4 pairs, dense 100, dense 1 (logit)."""

    minimum_crop: ClassVar[int] = 32
    kind: Literal["vgg"] = "vgg"
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")
    hidden: int = Field(100, ge=1, le=8192, description="units of the dense layer")
    input_size: int | None = Field(
        None, ge=32, description="crop size that the dense layers are built for; the recipe's by default"
    )


class TinyDiscriminatorSpec(Section):
    """One 3x3 convolution, global average pooling, one dense unit (logit): 1,857 parameters at 64."""

    minimum_crop: ClassVar[int] = 1
    kind: Literal["tiny"] = "tiny"
    channels: int = Field(64, ge=1, le=1024, description="channels of the convolution")


class PatchGANSpec(Section):
    """PatchGAN (arXiv 1611.07004): a map of logits, one for each patch."""

    minimum_crop: ClassVar[int] = 32
    kind: Literal["patchgan"] = "patchgan"
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")
    layers: int = Field(3, ge=1, le=6, description="strided convolutions")
    norm: Literal["batch", "instance", "spectral"] = Field(
        "instance", description="normalisation between convolutions; spectral: of their weights (arXiv 1802.05957)"
    )


class UNetDiscriminatorSpec(Section):
    """U-Net with spectral norm, Real-ESRGAN's discriminator: one logit for each pixel."""

    minimum_crop: ClassVar[int] = 16
    kind: Literal["unet"] = "unet"
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")


class MultiScaleSpec(Section):
    """The same discriminator at full size, half of it, and so on, with weights of their own (arXiv 1711.11585)."""

    kind: Literal["multiscale"] = "multiscale"
    base: Literal["unet", "patchgan"] = Field("unet", description="discriminator of each scale, with spectral norm")
    scales: int = Field(2, ge=2, le=4, description="number of scales")
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")

    @property
    def minimum_crop(self) -> int:
        return self.of_scale.minimum_crop * 2 ** (self.scales - 1)

    @property
    def of_scale(self) -> UNetDiscriminatorSpec | PatchGANSpec:
        """The options of the discriminator of each scale."""
        if self.base == "unet":
            return UNetDiscriminatorSpec(channels=self.channels)
        return PatchGANSpec(channels=self.channels, norm="spectral")


class DenseCriticSpec(Section):
    """4x4 convolutions with BatchNorm, then dense 1024 (tanh) and a dense output, as in DeblurGAN's table."""

    minimum_crop: ClassVar[int] = 32
    kind: Literal["dense_critic"] = "dense_critic"
    channels: int = Field(64, ge=4, le=512, description="channels of the first convolution")
    hidden: int = Field(1024, ge=1, le=8192, description="units of the dense layer")
    sigmoid: bool = Field(True, description="end with a sigmoid, as in DeblurGAN's table")


DiscriminatorSpec = Annotated[
    SRGANDiscriminatorSpec
    | VGGDiscriminatorSpec
    | TinyDiscriminatorSpec
    | PatchGANSpec
    | UNetDiscriminatorSpec
    | MultiScaleSpec
    | DenseCriticSpec,
    Field(discriminator="kind"),
]
