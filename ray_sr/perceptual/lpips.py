"""LPIPS, the learned perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924), version 0.1.

The backbone is torchvision's ImageNet classifier; on top of it each compared layer has a linear head that was
fitted to people's judgements. With other weights in either place the figures would not be LPIPS, so where the
published ones cannot be had there is no LPIPS: nothing stands in for them.

NIQE is not offered: its figures depend on a fitted model of natural photographs, which no maintained Python
library brings along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.errors import InputError, ModelError, WeightsAbsentError
from ray_sr.models.weights import decode_weights, load_strict
from ray_sr.perceptual.vgg import TORCHVISION, published_file, torchvision_url

LPIPSName = Literal["alex", "vgg", "squeeze"]

_HEADS_URL = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
    "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/{}.pth"
)


@dataclass(frozen=True)
class Variant:
    """One of the published networks."""

    model: str
    """torchvision's name of the backbone."""
    taps: tuple[int, ...]
    """Positions in torchvision's `features` whose outputs are compared; all are behind a ReLU."""
    smallest: int
    """Shortest side of a photo, in pixels, that the poolings leave something of."""
    heads: str
    """SHA-256 of the file of linear heads."""


VARIANTS: dict[LPIPSName, Variant] = {
    "alex": Variant(
        "alexnet", (1, 4, 7, 9, 11), 31, "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
    ),
    "vgg": Variant(
        "vgg16", (3, 8, 15, 22, 29), 16, "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
    ),
    "squeeze": Variant(
        "squeezenet1_1",
        (1, 4, 7, 9, 10, 11, 12),
        17,
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    ),
}


class LPIPS(nn.Module):
    """The distance with one backbone; frozen, in evaluation mode.

    `backbone` holds torchvision's tensors (`features.N.…`; others are left out), `heads` one 1×C×1×1 tensor for
    each compared layer. Raises ModelError where the backbone does not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: LPIPSName, backbone: Mapping[str, Tensor], heads: Sequence[Tensor]) -> None:
        super().__init__()
        self.name: LPIPSName = name
        self.variant = VARIANTS[name]
        self.features = _backbone(self.variant.model, backbone)[: self.variant.taps[-1] + 1]
        self.heads = nn.ParameterList([head.float() for head in heads])
        # The paper's scaling layer, which is for [-1, 1], is torchvision's normalisation of [0, 1].
        self.register_buffer("mean", torch.tensor(TORCHVISION.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(TORCHVISION.std).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Distance of each pair of photos: N values, 0 for equal photos; lower is better.

        Both are float32 RGB N×3×H×W in [0, 1]. Of every compared layer the feature vectors are scaled to unit
        length, the squared differences are weighted by the head and averaged over all positions; the layers'
        values are added (eq. 1). Raises InputError for photos that are too small for the backbone.
        """
        height, width = sr.shape[-2:]
        if min(height, width) < self.variant.smallest:
            least = self.variant.smallest
            raise InputError(f"{width}x{height} is too small for LPIPS ({self.name}): {least}x{least} is the least")
        distance = sr.new_zeros(sr.shape[0])
        for first, second, head in zip(self._maps(sr), self._maps(hr), self.heads, strict=True):
            distance += F.conv2d((first - second).square(), head).mean(dim=(1, 2, 3))
        return distance

    def _maps(self, rgb: Tensor) -> list[Tensor]:
        """The compared layers' features, of unit length at every position."""
        maps = []
        values = (rgb - self.mean) / self.std
        for position, layer in enumerate(self.features):
            values = layer(values)
            if position in self.variant.taps:
                maps.append(F.normalize(values, dim=1, eps=1e-10))
        return maps


def load_lpips(heads: str = "alex") -> LPIPS:
    """The published LPIPS on the CPU.

    heads: `alex` (the usual one), `vgg` or `squeeze`, whose linear heads come from torch's hub cache or the
    authors' repository; or a file of these heads. The backbone comes from the cache or torchvision. Raises
    InputError for a missing file, WeightsAbsentError where a download is needed and fails, and ModelError for
    files that do not hold what they should.
    """
    path = _heads_file(heads)
    data = path.read_bytes()
    name = _recognise(data, path)
    tensors = decode_weights(data, str(path)).state
    linear = [tensors[f"lin{index}.model.1.weight"] for index in range(len(VARIANTS[name].taps))]
    backbone = _published(torchvision_url(VARIANTS[name].model))
    return LPIPS(name, decode_weights(backbone.read_bytes(), str(backbone)).state, linear)


def _heads_file(heads: str) -> Path:
    if heads in VARIANTS:
        digest = VARIANTS[cast(LPIPSName, heads)].heads
        # The hash in the name is checked when the file is downloaded.
        return _published(_HEADS_URL.format(heads), f"lpips_v0.1_{heads}-{digest[:12]}.pth")
    path = Path(heads).expanduser()
    if not path.is_file():
        raise InputError(f"{heads}: no such file: give LPIPS's linear heads, or alex, vgg or squeeze")
    return path


def _published(url: str, name: str | None = None) -> Path:
    try:
        return published_file(url, name)
    except WeightsAbsentError as error:
        raise WeightsAbsentError(f"{error}; run once on a connected machine, or put the file there") from error


def _recognise(data: bytes, path: Path) -> LPIPSName:
    """Which heads these are. Version 0.0 has the same shapes, so the whole file has to be the published one."""
    digest = hashlib.sha256(data).hexdigest()
    for name, variant in VARIANTS.items():
        if digest == variant.heads:
            return name
    raise ModelError(f"{path} is none of the linear heads of LPIPS 0.1 (alex.pth, vgg.pth, squeeze.pth)")


def _backbone(model: str, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    # Here, because this import takes as long as PyTorch's.
    from torchvision.models import get_model

    with torch.device("meta"):  # nothing is initialised, so the global random state stays as it was
        layers = get_model(model, weights=None).features
    layers = layers.to_empty(device="cpu")
    prefix = "features."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    load_strict(layers, own, f"LPIPS's {model}")
    return layers
