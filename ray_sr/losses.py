"""Losses of the generator and of the discriminator.

Photos are float32 RGB N×3×H×W in [0, 1] (the generator's output may leave that range; under autocast it may be
bfloat16). Every loss is a scalar, computed in float32, not multiplied by its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.images.sharpening import sharpen
from ray_sr.perceptual.feature_losses import MeanDistance, PerceptualDistance, contextual_distance, gram
from ray_sr.perceptual.quality import load_dists, load_lpips
from ray_sr.perceptual.vgg import load_feature_network
from ray_sr.recipes.losses import (
    AdversarialSpec,
    ColourLossSpec,
    DistillSpec,
    DISTSLossSpec,
    FeaturesSpec,
    FourierLossSpec,
    LDLSpec,
    LossSpec,
    LPIPSLossSpec,
    PerceptualLossSpec,
    PixelLossSpec,
    StructuralLossSpec,
    TotalVariationSpec,
)

Distance = Callable[[Tensor, Tensor], Tensor]

_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # RGB to Cb and Cr

# -------------------------------------------------------------------------------------- content losses


class ContentLoss(nn.Module):
    """One term of the generator's content loss: `forward(sr, hr, lr)` is the scalar, `weight` its factor.

    With `teacher` the output is compared with what that makes of the same `lr`, without gradients. With
    `sharpened` it is compared with HR after an unsharp mask (Real-ESRGAN, arXiv 2107.10833).
    """

    def __init__(
        self,
        name: str,
        weight: float,
        distance: Distance,
        sharpened: bool = False,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.name = name
        self.weight = weight
        self.distance = distance
        self.sharpened = sharpened

    def forward(self, sr: Tensor, hr: Tensor, lr: Tensor | None = None) -> Tensor:
        if isinstance(self.distance, ArtefactDistance):
            return self.distance(sr.float(), hr.float(), _given(lr))
        return self.distance(sr.float(), self._target(hr, lr))

    def _target(self, hr: Tensor, lr: Tensor | None) -> Tensor:
        if self.teacher is None:
            return sharpen(hr.float()) if self.sharpened else hr.float()
        with torch.no_grad():
            taught: Tensor = self.teacher(_given(lr))
        return taught.float()


def _given(lr: Tensor | None) -> Tensor:
    if lr is None:
        raise ValueError("this loss needs the input that the output was made from")
    return lr


def build_content_losses(
    specs: Iterable[LossSpec],
    features: FeaturesSpec,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype | None = None,
    teachers: Mapping[str, nn.Module] = MappingProxyType({}),
    ema: nn.Module | None = None,
) -> list[ContentLoss]:
    """The terms in the order of `specs`, on `device`; names are unique ("l1", "perceptual_vgg19", "l1_2").

    `teachers` are the models, in evaluation mode, that distillation names; `ema` is the averaged generator, which
    LDL compares with.

    `dtype` is that of autocast, where there is one: feature networks are converted to it once, and not by
    autocast in every step. Raises the errors of `perceptual.vgg.load_feature_network` for perceptual losses.
    """
    names: Counter[str] = Counter()
    terms = []
    for spec in specs:
        name = _name(spec)
        names[name] += 1
        if names[name] > 1:
            name = f"{name}_{names[name]}"
        sharpened = isinstance(spec, PixelLossSpec | PerceptualLossSpec) and spec.target == "sharpened"
        teacher = teachers[spec.teacher] if isinstance(spec, DistillSpec) else None
        term = ContentLoss(name, spec.weight, _distance(spec, features, dtype, ema), sharpened, teacher)
        terms.append(term.to(device).to(memory_format=memory_format))
    return terms


def _name(spec: LossSpec) -> str:
    if not isinstance(spec, PerceptualLossSpec):
        return spec.kind
    kind = {"features": "perceptual", "gram": "style", "contextual": "contextual"}[spec.compare]
    return f"{kind}_{spec.network}"


def _distance(spec: LossSpec, features: FeaturesSpec, dtype: torch.dtype | None, ema: nn.Module | None) -> Distance:
    match spec:
        case PixelLossSpec():
            return _of_pixels(spec)
        case DistillSpec():
            return F.l1_loss
        case PerceptualLossSpec():
            network = load_feature_network(
                spec.network,
                spec.layers,
                weights=features.weights,
                activation=spec.activation,
                normalise=spec.normalise,
                signed=spec.signed,
            )
            network.features.to(dtype)
            return PerceptualDistance(network, spec.layers, _of_maps(spec))
        case ColourLossSpec():
            return _of_colour(spec)
        case TotalVariationSpec():
            return lambda sr, hr: total_variation(sr)
        case FourierLossSpec():
            return fourier_distance
        case StructuralLossSpec():
            return lambda sr, hr: 1 - ms_ssim(sr, hr, spec.levels)
        case LPIPSLossSpec():
            return MeanDistance(load_lpips(spec.network, spec.weights))
        case DISTSLossSpec():
            return MeanDistance(load_dists(spec.weights))
        case LDLSpec():
            return ArtefactDistance(_averaged(ema), spec.window)


def _averaged(ema: nn.Module | None) -> nn.Module:
    if ema is None:
        raise ValueError("ldl needs the averaged generator")
    return ema


def _of_colour(spec: ColourLossSpec) -> Distance:
    match spec.kind:
        case "mean_colour":
            return mean_colour_distance
        case "chroma":
            return chroma_distance
        case "histogram":
            return lambda sr, hr: histogram_distance(sr, hr, spec.bins)


def _of_pixels(spec: PixelLossSpec) -> Distance:
    match spec.kind:
        case "l1":
            return F.l1_loss
        case "mse":
            return F.mse_loss
        case "charbonnier":
            return lambda sr, hr: charbonnier(sr, hr, spec.eps)


def _of_maps(spec: PerceptualLossSpec) -> Distance:
    distance = F.mse_loss if spec.distance == "mse" else F.l1_loss
    match spec.compare:
        case "features":
            return distance
        case "gram":
            return lambda sr, hr: distance(gram(sr), gram(hr))
        case "contextual":
            return contextual_distance


def charbonnier(sr: Tensor, hr: Tensor, eps: float) -> Tensor:
    """Mean of sqrt(d² + eps²) over all values (LapSRN, arXiv 1710.01992)."""
    return ((sr - hr).square() + eps**2).sqrt().mean()


class ArtefactDistance(nn.Module):
    """LDL's loss of SR, HR and LR: L1 weighted by a map of artefacts (arXiv 2203.09195, eqs. 4 to 7).

    Of the error, summed over the channels: its variance in each window, times the fifth root of that of the whole
    photo; 0 where the error of the averaged generator is larger. As in the authors' program gradients pass through
    the map too.
    """

    def __init__(self, ema: nn.Module, window: int) -> None:
        super().__init__()
        self._ema = (ema,)  # no part of this module: training goes on changing it
        self.window = window

    def forward(self, sr: Tensor, hr: Tensor, lr: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(sr.device.type, enabled=False):
            averaged = (hr - self._ema[0](lr.float())).abs().sum(1, keepdim=True)
        error = (hr - sr).abs().sum(1, keepdim=True)
        whole = error.var((1, 2, 3), keepdim=True).clamp(min=_LEAST_VARIANCE) ** 0.2
        weight = torch.where(error < averaged, 0.0, whole * local_variance(error, self.window))
        return (weight * (sr - hr)).abs().mean()


_LEAST_VARIANCE = 1e-12  # the fifth root has no gradient at 0


def local_variance(maps: Tensor, window: int) -> Tensor:
    """Unbiased variance in the window around each pixel of N×1×h×w; the border is reflected."""
    padded = F.pad(maps, [window // 2] * 4, mode="reflect")
    windows = padded.unfold(2, window, 1).unfold(3, window, 1)
    return windows.var((-2, -1))


def mean_colour_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference between the mean colours of each photo."""
    return F.l1_loss(sr.mean(dim=(2, 3)), hr.mean(dim=(2, 3)))


def chroma_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the chroma Cb and Cr of each pixel (BT.601 full range, as in JFIF).

    Blind to brightness: beside an adversarial loss it keeps invented texture from having a colour of its own.
    """
    channels = (sr - hr).unbind(1)
    weighted = [torch.stack([w * channel for w, channel in zip(row, channels, strict=True)]) for row in _CHROMA]
    return torch.stack(weighted).sum(1).abs().mean()


def histogram_distance(sr: Tensor, hr: Tensor, bins: int) -> Tensor:
    """L1 distance of the soft histograms of every channel, mean over photos and channels; in [0, 2]."""
    difference = soft_histogram(sr, bins) - soft_histogram(hr, bins)
    return difference.abs().sum(dim=2).mean()


def soft_histogram(values: Tensor, bins: int) -> Tensor:
    """Histogram of every channel, N×C×bins summing to 1, by a triangular kernel; differentiable.

    Bin centres are i / (bins - 1). A value is shared by the two centres beside it in proportion to its
    nearness, so the histogram moves smoothly with it. Values outside [0, 1] count in the outermost bins.
    """
    position = values.flatten(2).clamp(0, 1) * (bins - 1)
    lower = position.detach().floor().clamp(max=bins - 2)
    share = (position - lower) / position.shape[2]  # of the upper centre
    index = lower.long()
    histogram = torch.zeros(*position.shape[:2], bins, dtype=position.dtype, device=position.device)
    histogram = histogram.scatter_add(2, index, 1 / position.shape[2] - share)
    return histogram.scatter_add(2, index + 1, share)


def total_variation(photos: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute difference of neighbours, across plus down."""
    across = (photos[..., :, 1:] - photos[..., :, :-1]).abs().mean()
    down = (photos[..., 1:, :] - photos[..., :-1, :]).abs().mean()
    return across + down


def fourier_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the two spectra, not divided by their size.

    The spectrum of real values mirrors itself: half of it is computed, and counts twice but for its ends.
    """
    width = sr.shape[-1]
    difference = torch.view_as_real(torch.fft.rfft2(sr - hr)).abs().sum(-1)
    twice = difference[..., 1 : (width + 1) // 2].sum()
    return (difference.sum() + twice) / (2 * sr.numel())


_LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the paper, from fine to coarse
_STABLE = (0.01**2, 0.03**2)
_LEAST_LIKENESS = 1e-6  # structure can be opposite; powers of negative numbers are none


def ms_ssim(sr: Tensor, hr: Tensor, levels: int = 5) -> Tensor:
    """MS-SSIM of values in [0, 1], mean over photos and channels (Wang, Simoncelli and Bovik 2003, eq. 7).

    A Gaussian window of 11 and sigma 1.5 without padding; halved by means of 2x2 between levels, whose weights
    are scaled to the sum of 1.
    """
    whole = sum(_LEVEL_WEIGHTS[:levels])
    value = sr.new_ones(sr.shape[:2])
    for level in range(levels):
        if level:
            sr, hr = F.avg_pool2d(sr, 2), F.avg_pool2d(hr, 2)
        light, structure = _ssim_parts(sr, hr)
        likeness = (light * structure if level == levels - 1 else structure).mean((2, 3))
        value = value * likeness.clamp(min=_LEAST_LIKENESS) ** (_LEVEL_WEIGHTS[level] / whole)
    return value.mean()


def _ssim_parts(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of the likeness of brightness, and of contrast and structure (Wang et al. 2004, eq. 13)."""
    stacked = torch.cat([sr, hr, sr * sr, hr * hr, sr * hr])
    mean_sr, mean_hr, square_sr, square_hr, product = _windowed(stacked).chunk(5)
    light = (2 * mean_sr * mean_hr + _STABLE[0]) / (mean_sr**2 + mean_hr**2 + _STABLE[0])
    covariance = product - mean_sr * mean_hr
    variances = square_sr - mean_sr**2 + square_hr - mean_hr**2
    return light, (2 * covariance + _STABLE[1]) / (variances + _STABLE[1])


def _windowed(values: Tensor) -> Tensor:
    """Means under the Gaussian window, rows then columns; the sides lose 10."""
    channels = values.shape[1]
    window = torch.exp(-((torch.arange(11, device=values.device, dtype=values.dtype) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)
    across = F.conv2d(values, window, groups=channels)
    return F.conv2d(across, window.mT, groups=channels)


# ----------------------------------------------------------------------------------- adversarial losses


def _bce(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels)


def _least_squares(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, labels)


def _hinge(logits: Tensor, labels: Tensor) -> Tensor:
    return F.relu(1 + (1 - 2 * labels) * logits).mean()


def _linear(logits: Tensor, labels: Tensor) -> Tensor:
    return ((1 - 2 * labels) * logits).mean()


@dataclass(frozen=True)
class _Kind:
    """Criteria of logits against labels (1 real, 0 fake), and their factors."""

    critic: Distance
    generator: Distance
    critic_factor: float
    generator_factor: float = 1.0
    boundary: float | None = 0.0  # logit between real and fake; None: logits mean something only compared


_KINDS = {
    "bce": _Kind(_bce, _bce, critic_factor=0.5),
    "lsgan": _Kind(_least_squares, _least_squares, critic_factor=0.5, generator_factor=0.5, boundary=0.5),
    "hinge": _Kind(_hinge, _linear, critic_factor=1.0),
    "wasserstein": _Kind(_linear, _linear, critic_factor=1.0, boundary=None),
    "relativistic": _Kind(_bce, _bce, critic_factor=0.5, generator_factor=0.5, boundary=None),
}


class AdversarialLoss:
    """The losses of one GAN game. Logits are N×1 or N×1×h×w; r of real photos, f of the generator's.

    The discriminator's loss is `real_loss + fake_loss`. They are apart so that each can be backpropagated
    right after its own forward pass. Each is a mean over all logits of:

        kind          real_loss             fake_loss             generator_loss        arXiv
        bce           ½ -log σ(r)           ½ -log(1 - σ(f))      -log σ(f)             1609.04802 eq. 6
        lsgan         ½ (r - 1)²            ½ f²                  ½ (f - 1)²            1611.04076
        hinge         max(0, 1 - r)         max(0, 1 + f)         -f                    1705.02894
        wasserstein   -r                    f                     -f                    1701.07875
        relativistic  ½ -log σ(r - mean f)  ½ -log σ(mean r - f)  both, r and f swapped 1807.00734

    So with bce and relativistic the discriminator's loss is the average of its two sides: a discriminator
    that cannot tell real from fake has log 2 = 0.693. `relativistic` (`needs_both`) compares the logits of
    both sides; its means are over the batch of this process.
    """

    def __init__(self, spec: AdversarialSpec) -> None:
        self.spec = spec
        self.name = spec.kind
        self.weight = spec.weight
        self._kind = _KINDS[spec.kind]

    @property
    def needs_both(self) -> bool:
        """Whether the losses of one side need the logits of the other."""
        return self.spec.kind == "relativistic"

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Scalar that the generator lowers, not multiplied by `weight`; its labels are never smoothed."""
        fake = fake_logits.float()
        kind = self._kind
        if not self.needs_both:
            return kind.generator_factor * kind.generator(fake, torch.ones_like(fake))
        real = _detached(real_logits)
        return kind.generator_factor * (_relative(fake, real, 1.0) + _relative(real, fake, 0.0))

    def real_loss(
        self, real_logits: Tensor, fake_logits: Tensor | None = None, rng: torch.Generator | None = None
    ) -> Tensor:
        """The real photos' part of the discriminator's loss.

        Gradients flow into `real_logits` only. `rng` draws the label noise. Relativistic needs `fake_logits`
        of the same weights; its gradient also holds what `fake_loss` owes to the mean of `real_logits`, so
        the gradients of the two parts add up to that of the whole.
        """
        return self._critic_loss(real_logits, fake_logits, 1.0, rng)

    def fake_loss(
        self, fake_logits: Tensor, real_logits: Tensor | None = None, rng: torch.Generator | None = None
    ) -> Tensor:
        """The generated photos' part of the discriminator's loss: as `real_loss`, the sides exchanged."""
        return self._critic_loss(fake_logits, real_logits, 0.0, rng)

    def _critic_loss(
        self, logits: Tensor, others: Tensor | None, label: float, rng: torch.Generator | None
    ) -> Tensor:
        own = logits.float()
        if not self.needs_both:
            return self._kind.critic_factor * self._kind.critic(own, self._labels(own, label, rng))
        across = _detached(others)
        other_side = _relative(across, own, 1.0 - label)
        return self._kind.critic_factor * (_relative(own, across, label) + other_side - other_side.detach())

    def _labels(self, logits: Tensor, label: float, rng: torch.Generator | None) -> Tensor:
        labels = torch.full_like(logits, label * (1.0 - self.spec.label_smoothing))
        if not self.spec.label_noise:
            return labels
        if rng is None:
            raise ValueError("label_noise needs a torch.Generator")
        noise = _drawn(logits.shape, rng, logits.device)
        inwards = 1.0 - 2.0 * label
        return labels + inwards * self.spec.label_noise * noise

    def gradient_penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Mean of (‖∇D(x)‖ - 1)², not multiplied by its factor (WGAN-GP, arXiv 1704.00028, algorithm 1).

        Each x lies at a uniformly random place between a real and a generated photo N×3×H×W; the norm is
        over all values of a photo. A patch discriminator's D(x) is the mean of its logits, as in the losses.
        Runs in float32 also under autocast. Under DDP pass the bare module: `torch.autograd.grad` does not
        go through DDP's wrapper.
        """
        real, fake = real.detach().float(), fake.detach().float()
        place = _drawn(torch.Size((real.shape[0], 1, 1, 1)), rng, real.device)
        between = torch.lerp(fake, real, place).requires_grad_()
        with torch.autocast(between.device.type, enabled=False):
            scores = discriminator(between).flatten(1).mean(dim=1)
            (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        norms = torch.linalg.vector_norm(gradient, dim=(1, 2, 3))
        return (norms - 1.0).square().mean()

    @torch.no_grad()
    def clip_weights(self, discriminator: nn.Module) -> None:
        """Clamp every parameter to ±`weight_clip` (WGAN, arXiv 1701.07875); does nothing without it."""
        bound = self.spec.weight_clip
        if bound is not None:
            for parameter in discriminator.parameters():
                parameter.clamp_(-bound, bound)

    @torch.no_grad()
    def accuracy(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of real logits judged real and of fake ones judged fake: two scalars, left on the device.

        Wasserstein's and relativistic logits have no fixed boundary: there a real one is judged real if it
        is above the mean of the fake ones, and a fake one fake if it is below the mean of the real ones.
        """
        real, fake = real_logits.float(), fake_logits.float()
        boundary = self._kind.boundary
        above, below = (fake.mean(), real.mean()) if boundary is None else (boundary, boundary)
        return (real > above).float().mean(), (fake < below).float().mean()


def feature_distance(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the mean absolute difference of their features (pix2pixHD, arXiv 1711.11585, eq. 4)."""
    layers = [F.l1_loss(one.float(), other.float()) for one, other in zip(fake, real, strict=True)]
    return torch.stack(layers).mean()


def _drawn(shape: torch.Size, rng: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), the same on every device; a GPU copies them from page-locked memory."""
    pinned = device.type == "cuda" and rng.device.type == "cpu"
    return torch.rand(shape, generator=rng, device=rng.device, pin_memory=pinned).to(device, non_blocking=True)


def _detached(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise ValueError("the relativistic loss needs the logits of both sides")
    return logits.detach().float()


def _relative(logits: Tensor, others: Tensor, label: float) -> Tensor:
    return _bce(logits - others.mean(), torch.full_like(logits, label))
