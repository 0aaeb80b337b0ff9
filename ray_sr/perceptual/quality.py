"""Learned measures of quality by libraries: LPIPS (torchmetrics), DISTS and BRISQUE (piq).

LPIPS and DISTS compare two photos by an ImageNet classifier with heads that were fitted to people's judgements;
torchmetrics brings those heads along, the classifier is torchvision's file. BRISQUE judges one photo alone. With
other weights the figures would not be these measures: where the published ones cannot be had, there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_sr.errors import InputError, ModelError, ResourceError, WeightsAbsentError
from ray_sr.models.weights import decode_weights, load_strict
from ray_sr.perceptual.vgg import published_file, torchvision_url
from ray_sr.recipes.losses import LEAST_SIDES, DISTSLossSpec, LossSpec, LPIPSLossSpec
from ray_sr.storage import first_line

LPIPSName = Literal["alex", "vgg", "squeeze"]

BACKBONES: dict[LPIPSName, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""torchvision's names."""
_DISTS_LAYERS = ("3", "8", "15", "22", "29")  # of VGG16's `features`: the last ReLU of each block
_DISTS_CHANNELS = [3, 64, 128, 256, 512, 512]
_BRISQUE_URL = "https://github.com/photosynthesis-team/piq/releases/download/v0.4.0/brisque_svm_weights.pt"
_BRISQUE_LEAST = 16
_BRISQUE_FEATURES = 36
_BRISQUE_RHO = -153.591  # of the authors' regression (allmodel, LIBSVM)


class LPIPS(nn.Module):
    """LPIPS 0.1 (arXiv 1801.03924) with one backbone; frozen. `backbone` holds torchvision's `features.N.…`.

    Raises ModelError where the backbone does not fit.
    """

    def __init__(self, name: LPIPSName, backbone: Mapping[str, Tensor]) -> None:
        from torchmetrics.functional.image.lpips import _LPIPS  # the public class loads no file of one's own

        super().__init__()
        self.name: LPIPSName = name
        with torch.random.fork_rng(devices=[]):
            self.network = _LPIPS(net=name, pnet_rand=True)
        prefix = 2 if name == "squeeze" else 1  # "slices.1.3.squeeze.weight", "slice1.0.weight"
        own = {key: f"features.{key.split('.', prefix)[-1]}" for key in self.network.net.state_dict()}
        found = {key: backbone[theirs] for key, theirs in own.items() if theirs in backbone}
        load_strict(self.network.net, found, f"LPIPS's {BACKBONES[name]}")
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Distance of each pair of photos: N values, 0 for equal photos; lower is better.

        Both are float32 RGB N×3×H×W in [0, 1]; SR may have a gradient. Raises InputError where they are too small.
        """
        _check_size(sr, f"LPIPS ({self.name})", LEAST_SIDES[self.name])
        distances: Tensor = self.network(sr, hr, normalize=True)
        return distances.flatten()


def load_lpips(name: LPIPSName = "alex", weights: str | None = None) -> LPIPS:
    """LPIPS on the CPU; `weights` is torchvision's file of its backbone, by default from its cache or downloaded.

    Raises ResourceError without torchmetrics, InputError for a missing file, WeightsAbsentError where a download is
    needed and fails, ModelError for a file that does not hold what it should.
    """
    _require("torchmetrics", "LPIPS")
    path = _backbone_file(BACKBONES[name], weights)
    return LPIPS(name, decode_weights(path.read_bytes(), str(path)).state)


class DISTS(nn.Module):
    """DISTS (arXiv 2004.07728), frozen. `backbone` holds torchvision's VGG16, `heads` its "alpha" and "beta"."""

    def __init__(self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stack = _vgg16(backbone)
        whole = heads["alpha"].sum() + heads["beta"].sum()
        weights = [
            part.detach().clone()
            for name in ("alpha", "beta")
            for part in torch.split(heads[name] / whole, _DISTS_CHANNELS, dim=1)
        ]
        self._distance = _piq_dists(self.stack, weights)
        self.requires_grad_(False).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> DISTS:
        """piq keeps these outside its module, and would copy them to the device in each step."""
        super()._apply(fn, recurse)
        inner = self._distance
        inner.weights = [fn(weight) for weight in inner.weights]
        inner.mean, inner.std = fn(inner.mean), fn(inner.std)
        return self

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Distance of each pair of photos: N values from 0 (equal) to 1; lower is better.

        Both are float32 RGB N×3×H×W in [0, 1]; larger photos are made smaller to a shorter side of 256, as the
        authors do. SR may have a gradient. Raises InputError where they are too small.
        """
        _check_size(sr, "DISTS", 16)
        distances: Tensor = self._distance(sr, hr)
        return distances


def _piq_dists(stack: nn.Sequential, weights: list[Tensor]) -> Any:
    """piq's DISTS around a network at hand: its own constructor only downloads."""
    import piq

    class Offline(piq.DISTS):
        def __init__(self) -> None:
            piq.ContentLoss.__init__(
                self,
                stack,
                layers=_DISTS_LAYERS,
                weights=weights,
                replace_pooling=True,
                reduction="none",
                allow_layers_weights_mismatch=True,
            )

    return Offline()


def load_dists(weights: str | None = None) -> DISTS:
    """DISTS on the CPU; `weights` is torchvision's VGG16, by default from its cache or downloaded.

    Raises as `load_lpips`.
    """
    for library in ("piq", "torchmetrics"):
        _require(library, "DISTS")
    import torchmetrics

    path = _backbone_file("vgg16", weights)
    heads = Path(torchmetrics.__file__).parent / "functional/image/dists_models/weights.pt"
    loaded = torch.load(heads, map_location="cpu", weights_only=True)
    return DISTS(decode_weights(path.read_bytes(), str(path)).state, loaded)


def _vgg16(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    # Here, because this import takes as long as PyTorch's.
    from torchvision.models import vgg16

    with torch.device("meta"):  # nothing is initialised, so the global random state stays as it was
        layers = vgg16(weights=None).features[:30]
    layers = layers.to_empty(device="cpu")
    own = {f"features.{name}": name for name in layers.state_dict()}
    load_strict(layers, {name: tensors[key] for key, name in own.items() if key in tensors}, "DISTS's vgg16")
    assert isinstance(layers, nn.Sequential)
    return layers


class BRISQUE:
    """BRISQUE (Mittal, Moorthy and Bovik 2012): how unnatural a photo looks; 0 to about 100, lower is better.

    `vectors`, n×36, and their `coefficients`, n, are the support vectors of the regression: piq's published ones
    are those of the authors.
    """

    def __init__(self, coefficients: Tensor, vectors: Tensor) -> None:
        self.coefficients, self.vectors = coefficients.float(), vectors.float()

    def __call__(self, photo: Tensor) -> float:
        """Of one photo, float32 1×3×H×W in [0, 1]. Raises InputError for a photo that is flat or too small."""
        _check_size(photo, "BRISQUE", _BRISQUE_LEAST)
        piq = import_module("piq.brisque")  # its public function would read the file anew for each photo
        luma, features = torch.round(piq.rgb2yiq(photo * 255)[:, :1]), []
        try:
            for _ in range(2):
                features.append(piq._natural_scene_statistics(luma))
                luma = piq.imresize(luma, sizes=(luma.shape[2] // 2, luma.shape[3] // 2))
        except AssertionError as error:
            raise InputError(f"BRISQUE cannot judge this photo: {str(error).splitlines()[0]}") from None
        kernel = piq._rbf_kernel(piq._scale_features(torch.cat(features, dim=-1)), self.vectors.mT)
        return float(kernel @ self.coefficients) - _BRISQUE_RHO


def load_brisque(weights: str | None = None) -> BRISQUE:
    """BRISQUE; `weights` is piq's file of support vectors, by default from torch's cache or downloaded.

    Raises as `load_lpips`.
    """
    _require("piq", "BRISQUE")
    path = _given_or_published(weights, _BRISQUE_URL, "piq's brisque_svm_weights.pt")
    try:
        coefficients, vectors = torch.load(path, map_location="cpu", weights_only=True)
        return BRISQUE(coefficients.reshape(len(vectors)), vectors.reshape(-1, _BRISQUE_FEATURES))
    except Exception as error:
        raise ModelError(f"{path}: not the support vectors of BRISQUE: {first_line(error)}") from None


def resolve_quality_weights(losses: Iterable[LossSpec]) -> None:
    """Whether LPIPS and DISTS of these losses can be had: raises as `load_lpips`, before any work."""
    for loss in losses:
        if isinstance(loss, LPIPSLossSpec):
            _require("torchmetrics", "LPIPS")
            _backbone_file(BACKBONES[loss.network], loss.weights)
        elif isinstance(loss, DISTSLossSpec):
            load_dists(loss.weights)


def _require(library: str, measure: str) -> None:
    if find_spec(library) is None:
        raise ResourceError(f"{measure} needs {library}: pip install 'ray-sr[quality]'")


def _backbone_file(model: str, given: str | None) -> Path:
    return _given_or_published(given, torchvision_url(model), f"torchvision's {model} .pth file")


def _given_or_published(given: str | None, url: str, what: str) -> Path:
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise InputError(f"{given}: no such file: give {what}")
        return path
    try:
        return published_file(url)
    except WeightsAbsentError as error:
        raise WeightsAbsentError(f"{error}; run once on a connected machine, or put the file there") from error


def _check_size(photos: Tensor, measure: str, least: int) -> None:
    height, width = photos.shape[-2:]
    if min(height, width) < least:
        raise InputError(f"{width}x{height} is too small for {measure}: {least}x{least} is the least")
