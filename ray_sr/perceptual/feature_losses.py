"""Distances of feature maps as losses: place by place, by style, by context."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.perceptual.vgg import FeatureNetwork

Distance = Callable[[Tensor, Tensor], Tensor]


class PerceptualDistance(nn.Module):
    """Weighted sum over layers of a distance between feature maps (SRGAN, arXiv 1609.04802, eq. 5).

    A layer's distance is the mean over all elements: photos, channels and positions. Eq. 5 divides the sum
    over channels by W·H only, which is C times as much (512 times at conv5_4). The paper also divides the
    maps by 12.75, which is a factor of 0.00615 on the loss; here such factors belong in the recipe's weight.
    Caffe-trained weights see values up to 255: their maps, and this loss, are far larger than torchvision's.
    """

    def __init__(self, network: FeatureNetwork, layers: dict[str, float], distance: Distance) -> None:
        super().__init__()
        self.network = network
        self.layers = dict(layers)
        self.distance = distance

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.network(hr)
        output = self.network(sr)
        terms = [
            weight * self.distance(output[name].float(), target[name].float())
            for name, weight in self.layers.items()
        ]
        return torch.stack(terms).sum()


def gram(maps: Tensor) -> Tensor:
    """Gram matrices of N×C×h×w, divided by C·h·w: N×C×C (arXiv 1603.08155, eq. 3)."""
    flat = maps.flatten(2)
    return flat @ flat.mT / flat[0].numel()


_BANDWIDTH = 0.5  # of the contextual loss, and what keeps its distances from being divided by 0
_LEAST_DISTANCE = 1e-5


def contextual_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """The contextual loss of feature maps N×C×h×w: -log CX, mean over photos (arXiv 1803.02077, eqs. 2 to 5).

    Cosine distances of all pairs, after HR's mean feature is taken off; memory grows with (h·w)².
    """
    middle = hr.mean((2, 3), keepdim=True)
    first, second = (F.normalize((maps - middle).flatten(2), dim=1) for maps in (sr, hr))
    distance = (1 - first.mT @ second).clamp(min=0)  # N × places of SR × places of HR
    relative = distance / (distance.amin(2, keepdim=True) + _LEAST_DISTANCE)
    likeness = torch.softmax((1 - relative) / _BANDWIDTH, 2)
    return -likeness.amax(1).mean(1).log().mean()


class MeanDistance(nn.Module):
    """The mean over photos of what `network` says of each, in float32 also under autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.autocast(sr.device.type, enabled=False):
            distances: Tensor = self.network(sr, hr)
        return distances.mean()
