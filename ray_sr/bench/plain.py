"""The loops that this project is measured against, written as BasicSR and Real-ESRGAN do it (2024).

Eager float32 in the default memory layout: no autocast, no channels_last, no fused optimizer, no compilation.
The losses are read on the host in every step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.models import Generator

EMA_DECAY = 0.999
TILE = 400
TILE_PAD = 10


class PlainPretrainLoop:
    """MSRResNet's stage: L1, Adam, EMA."""

    def __init__(self, generator: nn.Module, average: nn.Module) -> None:
        self.generator, self.average = generator, average
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.9, 0.99))

    def run(self, lr: Tensor, hr: Tensor) -> dict[str, float]:
        """One step; LR and HR float32 N×3×h×w in [0, 1]."""
        self.optimizer.zero_grad()
        loss = F.l1_loss(self.generator(lr), hr)
        loss.backward()
        self.optimizer.step()
        update_average(self.average, self.generator)
        return {"g_l1": loss.item()}


class PlainGanLoop:
    """MSRGAN's stage: 1e-2 L1 + VGG19 conv5_4 before ReLU by L1 + 5e-3 BCE; then real and fake photos apart."""

    def __init__(
        self, generator: nn.Module, average: nn.Module, discriminator: nn.Module, features: nn.Module
    ) -> None:
        self.generator, self.average = generator, average
        self.discriminator, self.features = discriminator, features
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def run(self, lr: Tensor, hr: Tensor) -> dict[str, float]:
        """One step of both networks; LR and HR float32 N×3×h×w in [0, 1]."""
        sr, losses = self._update_generator(lr, hr)
        losses |= self._update_discriminator(hr, sr)
        update_average(self.average, self.generator)
        return {name: loss.item() for name, loss in losses.items()}

    def _update_generator(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad()
        sr = self.generator(lr)
        pixel = F.l1_loss(sr, hr)
        perceptual = F.l1_loss(self.features(sr), self.features(hr))
        adversarial = judged(self.discriminator(sr), real=True)
        (1e-2 * pixel + perceptual + 5e-3 * adversarial).backward()
        self.generator_optimizer.step()
        return sr.detach(), {"g_l1": pixel, "g_perceptual_vgg19": perceptual, "g_adversarial": adversarial}

    def _update_discriminator(self, hr: Tensor, sr: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad()
        real = judged(self.discriminator(hr), real=True)
        real.backward()
        fake = judged(self.discriminator(sr), real=False)
        fake.backward()
        self.discriminator_optimizer.step()
        return {"d_real": real, "d_fake": fake}


class PlainVGG(nn.Module):
    """torchvision's VGG19 up to conv5_4, before its ReLU, of ImageNet-normalised RGB in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        from torchvision.models import vgg19

        with torch.device("meta"):
            self.features = vgg19(weights=None, init_weights=False).features[:35]
        self.load_state_dict(weights, assign=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, rgb: Tensor) -> Tensor:
        maps: Tensor = self.features((rgb - self.mean) / self.std)
        return maps


def judged(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of `logits` against one label for all."""
    labels = torch.full_like(logits, float(real))
    return F.binary_cross_entropy_with_logits(logits, labels)


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module) -> None:
    """Exponential moving average of the parameters, one at a time."""
    for old, new in zip(average.parameters(), generator.parameters(), strict=True):
        old.mul_(EMA_DECAY).add_(new, alpha=1 - EMA_DECAY)


@torch.inference_mode()
def plain_upscale(
    generator: Generator, picture: np.ndarray, device: torch.device, tile: int = TILE, pad: int = TILE_PAD
) -> np.ndarray:
    """uint8 H×W×3 -> uint8 (H·scale)×(W·scale)×3, tile by tile; a tile sees `pad` input pixels around it."""
    photo = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous().to(device)
    scale, (height, width) = generator.capability.scale, picture.shape[:2]
    result = photo.new_empty(1, 3, height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, first = _along(top, tile, pad, height, scale)
            columns, start = _along(left, tile, pad, width, scale)
            bottom, right = min(top + tile, height) * scale, min(left + tile, width) * scale
            core = result[..., top * scale : bottom, left * scale : right]
            core.copy_(generator(photo[..., rows, columns])[..., first, start])
    pixels: np.ndarray = result[0].clamp_(0, 1).permute(1, 2, 0).cpu().numpy()
    return (pixels * 255).round().astype(np.uint8)


def _along(begin: int, tile: int, pad: int, length: int, scale: int) -> tuple[slice, slice]:
    """Along one axis: what a tile sees of the input, and where its own part lies in the network's result."""
    end, first = min(begin + tile, length), max(begin - pad, 0)
    inner = slice((begin - first) * scale, (end - first) * scale)
    return slice(first, min(end + pad, length)), inner
