"""The discriminators: N×3×crop×crop in, one logit for each image, patch or pixel out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.models.layers import conv3, norm_layer, normal_init
from ray_sr.models.spectral_norm import SpectralConv2d
from ray_sr.recipes.networks import (
    DenseCriticSpec,
    MultiScaleSpec,
    PatchGANSpec,
    SRGANDiscriminatorSpec,
    TinyDiscriminatorSpec,
    UNetDiscriminatorSpec,
    VGGDiscriminatorSpec,
)

_SLOPE = 0.2


class SRGANDiscriminator(nn.Module):
    """Eight 3x3 convolutions, every second one strided, dense, dense 1 (arXiv 1609.04802, figure 4): N×1."""

    def __init__(self, spec: SRGANDiscriminatorSpec, crop: int) -> None:
        super().__init__()
        widths = [spec.channels * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
        layers: list[nn.Module] = [conv3(3, widths[0]), nn.LeakyReLU(_SLOPE)]
        side = crop
        for index in range(1, len(widths)):
            stride = 1 + index % 2
            conv = conv3(widths[index - 1], widths[index], stride, bias=False)
            layers += [conv, nn.BatchNorm2d(widths[index]), nn.LeakyReLU(_SLOPE)]
            side = -(-side // stride)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side**2, spec.hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(spec.hidden, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


class VGGDiscriminator(nn.Module):
    """Pairs of a 3x3 and a strided 4x4 convolution, dense, dense 1, as in BasicSR: N×1.

    Five pairs, six for crops from 256 on: at 128 and 256 pixels the parameters are BasicSR's, by name and
    shape.
    """

    def __init__(self, spec: VGGDiscriminatorSpec, crop: int) -> None:
        super().__init__()
        pairs = 5 if crop < 256 else 6
        widths = [3] + [spec.channels * min(2**pair, 8) for pair in range(pairs)]
        self.names = [f"{pair}_{half}" for pair in range(pairs) for half in (0, 1)]
        for pair in range(pairs):
            inputs, outputs = widths[pair], widths[pair + 1]
            self.add_module(f"conv{pair}_0", conv3(inputs, outputs, bias=pair == 0))
            self.add_module(f"bn{pair}_0", nn.BatchNorm2d(outputs) if pair else nn.Identity())
            self.add_module(f"conv{pair}_1", nn.Conv2d(outputs, outputs, 4, 2, 1, bias=False))
            self.add_module(f"bn{pair}_1", nn.BatchNorm2d(outputs))
        self.linear1 = nn.Linear(widths[-1] * (crop // 2**pairs) ** 2, spec.hidden)
        self.linear2 = nn.Linear(spec.hidden, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images
        for name in self.names:
            conv, norm = getattr(self, f"conv{name}"), getattr(self, f"bn{name}")
            features = F.leaky_relu(norm(conv(features)), _SLOPE)
        hidden = F.leaky_relu(self.linear1(features.flatten(1)), _SLOPE)
        return self.linear2(hidden)


class TinyDiscriminator(nn.Module):
    """One 3x3 convolution, the mean over the image, one dense unit: N×1. Takes any size."""

    def __init__(self, spec: TinyDiscriminatorSpec, crop: int) -> None:
        super().__init__()
        self.conv = conv3(3, spec.channels)
        self.dense = nn.Linear(spec.channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dense(F.leaky_relu(self.conv(images), _SLOPE).mean((2, 3)))


class PatchGAN(nn.Module):
    """A map of logits, one for each overlapping patch (arXiv 1611.07004, as DeblurGAN uses it): N×1×h×w.

    4x4 convolutions with padding 2: `layers` of stride 2, then one of stride 1 and the end. Weights start
    from N(0, 0.02); parameters carry the names of DeblurGAN's release. Takes any size.
    """

    def __init__(self, spec: PatchGANSpec, crop: int) -> None:
        super().__init__()
        widths = [spec.channels * min(2**index, 8) for index in range(spec.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 2), nn.LeakyReLU(_SLOPE)]
        for index in range(1, spec.layers + 1):
            stride = 2 if index < spec.layers else 1
            inputs, outputs = widths[index - 1], widths[index]
            if spec.norm == "spectral":
                layers += [SpectralConv2d(inputs, outputs, 4, stride, padding=2), nn.LeakyReLU(_SLOPE)]
            else:
                conv = nn.Conv2d(inputs, outputs, 4, stride, 2)
                layers += [conv, norm_layer(spec.norm, outputs), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 2))
        self.model = nn.Sequential(*layers)
        normal_init(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


class UNetDiscriminator(nn.Module):
    """U-Net with spectral norm (arXiv 2107.10833, section 3.3), a logit for each pixel: N×1×crop×crop.

    Parameters carry BasicSR's names. Takes any size.
    """

    def __init__(self, spec: UNetDiscriminatorSpec, crop: int) -> None:
        super().__init__()
        c = spec.channels
        self.conv0 = conv3(3, c)
        self.conv1 = SpectralConv2d(c, 2 * c, 4, 2)
        self.conv2 = SpectralConv2d(2 * c, 4 * c, 4, 2)
        self.conv3 = SpectralConv2d(4 * c, 8 * c, 4, 2)
        self.conv4 = SpectralConv2d(8 * c, 4 * c, 3)
        self.conv5 = SpectralConv2d(4 * c, 2 * c, 3)
        self.conv6 = SpectralConv2d(2 * c, c, 3)
        self.conv7 = SpectralConv2d(c, c, 3)
        self.conv8 = SpectralConv2d(c, c, 3)
        self.conv9 = conv3(c, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = _leaky(self.conv0(images))
        skips = []
        for down in (self.conv1, self.conv2, self.conv3):
            skips.append(features)
            features = _leaky(down(features))
        for up in (self.conv4, self.conv5, self.conv6):
            skip = skips.pop()
            enlarged = F.interpolate(features, size=skip.shape[-2:], mode="bilinear")
            features = _leaky(up(enlarged)) + skip
        return self.conv9(_leaky(self.conv8(_leaky(self.conv7(features)))))


class MultiScale(nn.Module):
    """U-Nets or PatchGANs of the image, of its half, and so on (arXiv 1711.11585, section 3.2): N×1×(scales·h)×w.

    The maps of logits stand below each other, the smaller ones enlarged to the first one's size by repetition, so
    that a mean over all logits weighs each scale alike. Images are halved by 3x3 means, as pix2pixHD does it. Takes
    any size from the smallest crop on.
    """

    def __init__(self, spec: MultiScaleSpec, crop: int) -> None:
        super().__init__()
        one = spec.of_scale
        makes = [
            UNetDiscriminator(one, crop) if one.kind == "unet" else PatchGAN(one, crop) for _ in range(spec.scales)
        ]
        self.critics = nn.ModuleList(makes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: list[torch.Tensor] = []
        for critic in self.critics:
            if maps:
                images = F.avg_pool2d(images, 3, 2, 1, count_include_pad=False)
            logits = critic(images)
            maps.append(F.interpolate(logits, size=maps[0].shape[-2:]) if maps else logits)
        return torch.cat(maps, dim=2)


class FeatureTaps:
    """What a discriminator's convolutions make of images, but for the logits: for feature matching."""

    def __init__(self, discriminator: nn.Module) -> None:
        self._convolutions = [
            module
            for module in discriminator.modules()
            if (isinstance(module, nn.Conv2d) and module.out_channels > 1) or isinstance(module, SpectralConv2d)
        ]

    @contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """The list that each forward pass adds its features to, from the first convolution to the last."""
        found: list[torch.Tensor] = []
        hooks = [
            convolution.register_forward_hook(lambda module, given, made: found.append(made))
            for convolution in self._convolutions
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


class DenseCritic(nn.Module):
    """4x4 convolutions 64-64-128-256 of stride 2 and 512-1 of stride 1, dense tanh, dense 1: N×1.

    BatchNorm from the second convolution on. Ends in a sigmoid where the spec says so: then the outputs are
    in [0, 1] and no logits. The convolutions of stride 1 keep the size by padding one side more.
    """

    def __init__(self, spec: DenseCriticSpec, crop: int) -> None:
        super().__init__()
        c = spec.channels
        layers: list[nn.Module] = [nn.Conv2d(3, c, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for inputs, outputs in ((c, c), (c, 2 * c), (2 * c, 4 * c)):
            layers += _normalised(nn.Conv2d(inputs, outputs, 4, 2, 1))
        for inputs, outputs in ((4 * c, 8 * c), (8 * c, 1)):
            layers += [nn.ZeroPad2d((1, 2, 1, 2)), *_normalised(nn.Conv2d(inputs, outputs, 4))]
        self.features = nn.Sequential(*layers)
        dense = [
            nn.Flatten(),
            nn.Linear((crop // 16) ** 2, spec.hidden),
            nn.Tanh(),
            nn.Linear(spec.hidden, 1),
        ]
        self.classifier = nn.Sequential(*dense, *([nn.Sigmoid()] if spec.sigmoid else []))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


def _normalised(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.LeakyReLU(_SLOPE)]


def _leaky(features: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(features, _SLOPE)
