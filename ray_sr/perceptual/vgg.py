"""Feature networks of perceptual losses: VGG16 and VGG19 convolutions, and where their weights come from.

Layers are named convI_J: convolution J of block I (arXiv 1409.1556, table 1). Parameters carry
torchvision's names, `features.N.weight`. Weights come from torchvision's .pth file, from a Caffe-trained
.npz under the same names, or from torchvision's download cache.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.errors import InputError, ModelError, RecipeError, WeightsAbsentError
from ray_sr.progress import Progress
from ray_sr.recipes.losses import FeaturesSpec, LossSpec, PerceptualLossSpec
from ray_sr.storage.download import download

log = logging.getLogger(__name__)

VGGName = Literal["vgg16", "vgg19"]
NetworkName = Literal["vgg16", "vgg19", "random"]
Activation = Literal["before", "after"]

_DEPTHS: dict[NetworkName, tuple[int, ...]] = {
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
    "random": (2, 2, 4, 4, 4),
}
_WIDTHS: dict[NetworkName, tuple[int, ...]] = {
    "vgg16": (64, 128, 256, 512, 512),
    "vgg19": (64, 128, 256, 512, 512),
    "random": (16, 32, 64, 128, 128),
}
_RANDOM_SEED = 19
_DOWNLOAD_TIMEOUT_S = 4.0
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_WEIGHT_NAME = re.compile(r"features\.(\d+)\.weight$")


@dataclass(frozen=True)
class Preprocessing:
    """What a network was trained to see: (x - mean) / std, of RGB in [0, 1]; `bgr`: in the order B, G, R."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def without_statistics(self) -> Preprocessing:
        """The same channel order and value range, but not centred and not scaled per channel."""
        return Preprocessing((0.0, 0.0, 0.0), self.std if self.bgr else (1.0, 1.0, 1.0), self.bgr)

    def signed(self) -> Preprocessing:
        """The same channel order and value range, centred at middle gray: [-1, 1], or ±127.5 for Caffe's."""
        return Preprocessing((0.5, 0.5, 0.5), self.std if self.bgr else (0.5, 0.5, 0.5), self.bgr)


TORCHVISION = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Caffe's VGG: 0..255 minus the mean colour, which is (103.939, 116.779, 123.68) in B, G, R.
CAFFE = Preprocessing((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True)


def layer_positions(network: NetworkName) -> dict[str, int]:
    """Index N of every convolution in torchvision's `features.N`, by layer name, in order of depth."""
    positions, position = {}, 0
    for block, depth in enumerate(_DEPTHS[network], start=1):
        for layer in range(1, depth + 1):
            positions[f"conv{block}_{layer}"] = position
            position += 2  # the convolution and its ReLU
        position += 1  # the pooling
    return positions


FeatureMaps = Callable[[Tensor], Mapping[str, Tensor]]
"""A FeatureNetwork, or what stands for one: RGB N×3×H×W in [0, 1] to maps by layer name."""


class FeatureNetwork(nn.Module):
    """VGG convolutions up to the deepest of `layers`, frozen, in evaluation mode.

    `tensors` holds at least those layers' weights, named `features.N.weight` and `features.N.bias`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: NetworkName,
        layers: Collection[str],
        tensors: Mapping[str, Tensor],
        preprocessing: Preprocessing = TORCHVISION,
        activation: Activation = "after",
    ) -> None:
        super().__init__()
        positions = layer_positions(network)
        behind = 1 if activation == "after" else 0
        self.taps = {positions[name] + behind: name for name in layers}
        # On the meta device nothing is initialised, so the global random state stays as it was.
        with torch.device("meta"):
            self.features = _convolutions(network, last=max(self.taps))
        own = {name: tensors[name].to(torch.float32, copy=True) for name in self.state_dict()}
        if preprocessing.bgr:
            own["features.0.weight"] = own["features.0.weight"].flip(1)
        self.load_state_dict(own, assign=True)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Feature maps by layer name of float32 RGB N×3×H×W in [0, 1], computed in the weights' dtype.

        Every pooling halves the sides: conv5 layers need at least 16 pixels.
        """
        maps = {}
        dtype = next(self.features.parameters()).dtype
        values = ((rgb - self.mean) / self.std).to(dtype)
        for position, module in enumerate(self.features):
            values = module(values)
            if position in self.taps:
                maps[self.taps[position]] = values
        return maps


def _convolutions(network: NetworkName, last: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    channels = 3
    for depth, width in zip(_DEPTHS[network], _WIDTHS[network], strict=True):
        for _ in range(depth):
            # Not in place: features before the activation must outlive it.
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules[: last + 1])


# --------------------------------------------------------------------------------------------- loading


def load_feature_network(
    network: NetworkName,
    layers: Collection[str],
    *,
    weights: str | None = None,
    activation: Activation = "after",
    normalise: bool = True,
    signed: bool = False,
) -> FeatureNetwork:
    """The frozen feature network on the CPU, with the preprocessing that its weights were trained with.

    `weights` is torchvision's .pth or a Caffe-trained .npz; without it torchvision's cache or download.
    `normalise=False` leaves out the mean (and torchvision's standard deviation); with `signed` the values
    are then centred at middle gray. Network `random` needs no weights. Raises InputError (no weights),
    ModelError (a file that does not fit) or RecipeError (a layer that the file does not hold).
    """
    if network == "random":
        tensors, preprocessing = _random_tensors(), TORCHVISION
    else:
        path = _weights_path(network, weights)
        tensors, preprocessing = _read(path)
        _verify(tensors, path, network, layers)
    if not normalise:
        preprocessing = preprocessing.signed() if signed else preprocessing.without_statistics()
    return FeatureNetwork(network, layers, tensors, preprocessing, activation)


def resolve_feature_weights(losses: Iterable[LossSpec], features: FeaturesSpec) -> dict[VGGName, Path]:
    """The weights file of every VGG that `losses` use; empty if they use none. Builds no network.

    A given file is opened and its layers are checked. Without one, torchvision's cache is looked up, and
    filled by a download if it is empty. Raises the errors of `load_feature_network`, before any work.
    """
    wanted: dict[VGGName, set[str]] = {}
    for loss in losses:
        if isinstance(loss, PerceptualLossSpec) and loss.network != "random":
            wanted.setdefault(loss.network, set()).update(loss.layers)
    paths = {network: _weights_path(network, features.weights) for network in wanted}
    if features.weights:
        for network, layers in wanted.items():
            _verify(_read(paths[network])[0], paths[network], network, layers)
    return paths


def cached_weights(network: str) -> Path | None:
    """torchvision's weights of `network` in torch's hub cache (TORCH_HOME), or None. Touches no network."""
    path = _cache_path(torchvision_url(network))
    return path if os.path.isfile(path) else None  # False also where the folder is another user's


def torchvision_url(network: str) -> str:
    """Where torchvision publishes the weights of `network` (its name there) that its first release had."""
    # Here, because this import takes as long as PyTorch's and a given file does not need it.
    from torchvision.models import get_model_weights

    return get_model_weights(network)["IMAGENET1K_V1"].url


def published_file(url: str, name: str | None = None) -> Path:
    """A file in torch's hub cache (TORCH_HOME), downloaded there if it is absent.

    `name` in the cache; by default the address's. Raises WeightsAbsentError where the download fails.
    """
    target = _cache_path(url, name)
    if os.path.isfile(target):
        return target
    log.info("downloading %s to %s", url, target)
    try:
        _download(url, target)
    except InputError as error:
        raise WeightsAbsentError(f"{target} is absent and its download failed ({error})") from error
    return target


def _cache_path(url: str, name: str | None = None) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / (name or Path(urlsplit(url).path).name)


def _weights_path(network: VGGName, given: str | None) -> Path:
    if given is None:
        return _published_vgg(network)
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(f"features.weights={given}: no such file; give torchvision's {network} .pth file")
    return path


def _published_vgg(network: VGGName) -> Path:
    try:
        return published_file(torchvision_url(network))
    except WeightsAbsentError as error:
        raise WeightsAbsentError(
            f"no {network} weights for the perceptual loss: {error}; give features.weights=PATH, "
            "or run once on a connected machine"
        ) from error


def _download(url: str, target: Path) -> None:
    """Fetch with a progress bar. torchvision's file names end in -SHA256PREFIX, which the content has to have."""
    named = re.search(r"-([0-9a-f]{8,})\.", target.name)
    with Progress(target.name, 1, "MiB") as progress:

        def hear(done: int, total: int) -> None:
            progress.expect(max(1, total >> 20))
            progress.update(done >> 20)

        sha256 = named[1] if named else None
        download(url, target, sha256=sha256, attempts=1, timeout_s=_DOWNLOAD_TIMEOUT_S, progress=hear)


def _read(path: Path) -> tuple[Mapping[str, Tensor], Preprocessing]:
    """Tensors by name and what they expect to see: .npz is Caffe-trained, everything else torchvision's."""
    try:
        tensors, preprocessing = (_npz(path), CAFFE) if path.suffix == ".npz" else (_pth(path), TORCHVISION)
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path} cannot be read as VGG weights ({reason}): give torchvision's .pth") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{path} holds no state dict of VGG weights: give torchvision's .pth")
    return tensors, preprocessing


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _pth(path: Path) -> Any:
    # A mapped file is read no further than needed; files of before 2020 are no zip and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _verify(tensors: Mapping[str, Tensor], path: Path, network: VGGName, layers: Collection[str]) -> None:
    """Raise unless the file holds all of `layers` of `network`, and of no other network."""
    positions = layer_positions(network)
    found = sorted(int(match[1]) for match in map(_WEIGHT_NAME.match, tensors) if match)
    if not found or found != list(positions.values())[: len(found)]:
        raise ModelError(
            f"{path} does not hold {network} weights: its layers are {found[:20]} of `features`, "
            f"not {list(positions.values())}; give torchvision's {network} .pth"
        )
    last = list(positions)[len(found) - 1]
    if absent := [name for name in sorted(layers) if positions[name] not in found]:
        raise RecipeError(
            f"{path} ends at {last}, a perceptual loss asks for {absent[0]}: choose layers up to {last}, "
            f"or give features.weights=torchvision's {network} .pth"
        )
    _verify_shapes(tensors, path, network, last=max(positions[name] for name in layers))


def _verify_shapes(tensors: Mapping[str, Tensor], path: Path, network: VGGName, last: int) -> None:
    with torch.device("meta"):
        expected = _convolutions(network, last).state_dict(prefix="features.")
    for name, tensor in expected.items():
        shape = tuple(tensors[name].shape) if name in tensors else "absent"
        if shape != tuple(tensor.shape):
            raise ModelError(
                f"{path} does not hold {network} weights: {name} is {shape}, not {tuple(tensor.shape)}; "
                f"give torchvision's {network} .pth"
            )


def _random_tensors() -> Mapping[str, Tensor]:
    """He-normal weights (arXiv 1502.01852) and zero biases; the same on every machine and in every run."""
    rng = np.random.default_rng(_RANDOM_SEED)  # NumPy's normal numbers are the same on every processor
    with torch.device("meta"):
        shapes = _convolutions("random", last=max(layer_positions("random").values())).state_dict()
    tensors = {}
    for name, meta in shapes.items():
        values = np.zeros(meta.shape, np.float32)
        if meta.ndim == 4:
            deviation = np.sqrt(2 / meta[0].numel())
            values = deviation.astype(np.float32) * rng.standard_normal(meta.shape, np.float32)
        tensors[f"features.{name}"] = torch.from_numpy(values)
    return tensors


# ------------------------------------------------------------------------------------------ evaluation


def distance_network(weights: str | None = None) -> FeatureNetwork:
    """The network of `vgg19_feature_distance`; `weights` and errors as in `load_feature_network`."""
    return load_feature_network("vgg19", ["conv3_4"], weights=weights)


@torch.no_grad()
def vgg19_feature_distance(sr: Tensor, hr: Tensor, network: FeatureMaps) -> Tensor:
    """Perceptual distance of each photo: N values in [0, 2], 0 for equal photos; lower is better.

    Protocol: VGG19 conv3_4 after ReLU; the feature vector of every position is scaled to unit length; the
    squared distance of the two vectors, averaged over all positions. This is the unweighted form of LPIPS
    (arXiv 1801.03924, eq. 1) on one layer and is not LPIPS: its values compare with nobody else's. Inputs
    are float32 RGB N×3×H×W in [0, 1], not cropped, not rounded. `network` is that of `distance_network`;
    values from Caffe-trained and from torchvision's weights differ.
    """
    maps = (F.normalize(network(photos)["conv3_4"].float(), dim=1) for photos in (sr, hr))
    first, second = maps
    return (first - second).square().sum(dim=1).mean(dim=(1, 2))
