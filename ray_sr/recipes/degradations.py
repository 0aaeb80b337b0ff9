"""The recipe's degradations: the steps from HR to LR."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ray_sr.recipes.section import NonNegative, Positive, Probability, Section, ordered

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
    """Downscale by the recipe's scale."""

    kind: Literal["downscale"] = "downscale"
    method: Literal["bicubic", "bilinear", "area"] = Field(
        "bicubic", description="antialiased; bicubic is MATLAB's imresize"
    )


class BlurSpec(Section):
    """Convolve with a random blur kernel."""

    kind: Literal["blur"] = "blur"
    probability: Probability = Field(1.0, description="probability that this step is applied")
    kernels: dict[BlurKernel, Positive] = Field(
        {"isotropic": 1.0}, min_length=1, description="kernel kinds with their relative frequencies"
    )
    size: tuple[KernelSize, KernelSize] = Field(
        (7, 21), description="smallest and largest kernel size; only odd sizes are drawn"
    )
    sigma: Range = Field((0.2, 3.0), description="range of the standard deviation in pixels")

    _ordered = field_validator("size", "sigma")(ordered)


class NoiseSpec(Section):
    """Add Gaussian or Poisson noise, in colour or gray."""

    kind: Literal["noise"] = "noise"
    probability: Probability = Field(1.0, description="probability that this step is applied")
    gaussian: Probability = Field(0.5, description="probability that the noise is Gaussian; else it is Poisson")
    sigma: Range = Field((1.0, 30.0), description="standard deviation of Gaussian noise, on the scale of 0 to 255")
    poisson_scale: Range = Field((0.05, 3.0), description="strength of Poisson noise")
    gray: Probability = Field(0.4, description="probability that all channels get the same noise")

    _ordered = field_validator("sigma", "poisson_scale")(ordered)


class CompressionSpec(Section):
    """Encode and decode with a lossy codec."""

    kind: Literal["jpeg", "webp"] = "jpeg"
    probability: Probability = Field(1.0, description="probability that this step is applied")
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
    probability: Probability = Field(
        1.0, description="probability that a photo gets it; the others are only downscaled, by bicubic"
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="1: Real-ESRGAN's own ranges; lower values narrow them towards no change"
    )


class MotionBlurSpec(Section):
    """Camera shake: a random trajectory turned into a kernel (Boracchi and Foi 2012; DeblurGAN)."""

    kind: Literal["motion_blur"] = "motion_blur"
    probability: Probability = Field(1.0, description="probability that this step is applied")
    size: int = Field(31, ge=3, le=127, description="side of the kernel in pixels")
    exposure: tuple[Probability, Probability] = Field(
        (0.1, 1.0), description="range of the exposed fraction of the trajectory"
    )
    gamma: Positive = Field(1.0, description="blur in linear light of this gamma; 1 blurs the stored values")

    _ordered = field_validator("exposure")(ordered)


class PairsSpec(Section):
    """No synthetic degradation: the input photo comes from a second folder (`data prepare --inputs`)."""

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
