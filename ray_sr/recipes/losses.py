"""The recipe's losses: pixel, perceptual, colour and adversarial ones, and where VGG's weights come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_sr.recipes.section import NonNegative, Positive, Section

Target = Annotated[
    Literal["hr", "sharpened"],
    Field(description="what the output is compared with: HR, or HR sharpened as by the degradation `sharpen`"),
]


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
        description="feature network; random: untrained, for machines without VGG weights",
    )
    layers: dict[str, Positive] = Field(
        {"conv5_4": 1.0}, min_length=1, description="layers by name (convI_J) with their weights"
    )
    compare: Literal["features", "gram", "contextual"] = Field(
        "features",
        description="features: place by place, by `distance`; gram: Gram matrices, by `distance`: style alone "
        "(arXiv 1603.08155, eq. 4); contextual: each feature with its nearest anywhere (arXiv 1803.02077)",
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
    """Colour alone: the mean colour of each photo, a soft histogram of each channel, or L1 distance of chroma."""

    kind: Literal["mean_colour", "histogram", "chroma"] = "mean_colour"
    weight: Positive = Field(1.0, description="factor of this term")
    bins: int = Field(32, ge=2, le=256, description="bins of the histogram")


class TotalVariationSpec(Section):
    """Total variation of the output."""

    kind: Literal["tv"] = "tv"
    weight: Positive = Field(1.0, description="factor of this term")


class FourierLossSpec(Section):
    """Mean absolute difference of the 2-D Fourier transforms: real and imaginary parts (arXiv 2108.05054)."""

    kind: Literal["fft"] = "fft"
    weight: Positive = Field(0.05, description="factor of this term; the transform is not normalised")


class StructuralLossSpec(Section):
    """1 - MS-SSIM (Wang, Simoncelli and Bovik 2003): similarity of structure at several scales."""

    kind: Literal["ms_ssim"] = "ms_ssim"
    weight: Positive = Field(1.0, description="factor of this term")
    levels: int = Field(
        5, ge=1, le=5, description="number of scales, each half the size of the one before; 5 need crops of 176 px"
    )

    @property
    def minimum_crop(self) -> int:
        return 11 * 2 ** (self.levels - 1)


LEAST_SIDES = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Shortest side of a photo, in pixels, that the poolings of LPIPS's networks leave something of."""


class LPIPSLossSpec(Section):
    """LPIPS 0.1 (arXiv 1801.03924), computed in float32 by torchmetrics: `pip install 'ray-sr[quality]'`."""

    kind: Literal["lpips"] = "lpips"
    weight: Positive = Field(1.0, description="factor of this term")
    network: Literal["alex", "vgg", "squeeze"] = Field(
        "vgg", description="feature network: AlexNet, VGG16, SqueezeNet"
    )
    weights: str | None = Field(
        None, description="torchvision's .pth file of the network; by default from its cache or downloaded"
    )


class DISTSLossSpec(Section):
    """DISTS (arXiv 2004.07728), similarity of structure and texture, by piq: `pip install 'ray-sr[quality]'`."""

    kind: Literal["dists"] = "dists"
    weight: Positive = Field(1.0, description="factor of this term")
    weights: str | None = Field(
        None, description="torchvision's .pth file of VGG16; by default from its cache or downloaded"
    )


class LDLSpec(Section):
    """Locally discriminative learning (arXiv 2203.09195): L1 where artefacts are, told apart from details.

    A pixel counts by the variance of the error around it, and not at all where the output is nearer to HR than that
    of the averaged (EMA) generator.
    """

    kind: Literal["ldl"] = "ldl"
    weight: Positive = Field(1.0, description="factor of this term")
    window: Literal[3, 5, 7, 9, 11] = Field(7, description="side of the window of the local variance, in pixels")


class DistillSpec(Section):
    """Distance to the output of another model for the same input (knowledge distillation)."""

    kind: Literal["distill"] = "distill"
    weight: Positive = Field(1.0, description="factor of this term")
    teacher: str = Field(min_length=1, description="model of the same scale (store name, folder or file)")


LossSpec = Annotated[
    PixelLossSpec
    | PerceptualLossSpec
    | ColourLossSpec
    | TotalVariationSpec
    | FourierLossSpec
    | StructuralLossSpec
    | LPIPSLossSpec
    | DISTSLossSpec
    | LDLSpec
    | DistillSpec,
    Field(discriminator="kind"),
]


class AdversarialSpec(Section):
    """The adversarial loss, which makes the generator's output look real."""

    kind: Literal["bce", "lsgan", "hinge", "wasserstein", "relativistic"] = Field(
        "bce",
        description="bce with logits, least squares, hinge, Wasserstein, or relativistic average (bce)",
    )
    weight: Positive = Field(1e-3, description="factor of the generator's adversarial term")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="real labels are 1 minus this value (bce, lsgan)")
    label_noise: float = Field(
        0.0, ge=0, lt=0.5, description="labels are moved inwards by a random amount up to this value (bce, lsgan)"
    )
    weight_clip: Positive | None = Field(
        None, description="clip the critic's weights to plus or minus this value (wasserstein)"
    )
    gradient_penalty: NonNegative = Field(0.0, description="factor of the gradient penalty (wasserstein: 10)")
    feature_matching: NonNegative = Field(
        0.0,
        description="factor of the mean absolute difference between what the discriminator's convolutions make of "
        "SR and of HR (pix2pixHD, arXiv 1711.11585, eq. 4)",
    )
    critic_updates: int = Field(1, ge=1, le=20, description="discriminator updates for each generator update")
    pause_above: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="the discriminator skips its update when its accuracy on the batch exceeds this",
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
        "by default torchvision's file, from its cache or downloaded",
    )
