"""Layers that are one linear map made into one convolution, for faster upscaling with the same result."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from ray_sr.models.generator import Generator
from ray_sr.models.span import BranchedConv


def folded(generator: Generator) -> Generator:
    """A copy in eval mode: BatchNorm merged into the convolution before it, SPAN's branches into one kernel.

    The outputs equal those of `generator.eval()` up to rounding; `generator` is left as it was. The copy is
    for inference: nothing in it is trainable, and its state dict does not load into the network it came from.
    A network with nothing to fold is copied as it is.
    """
    copied = copy.deepcopy(generator).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, nn.Sequential):
            _fold_pairs(module)
        for name, child in module.named_children():
            if isinstance(child, BranchedConv):
                setattr(module, name, child.folded().requires_grad_(False))
    return copied


def _fold_pairs(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        conv, norm = layers[index], layers[index + 1]
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
            transposed = isinstance(conv, nn.ConvTranspose2d)
            layers[index] = fuse_conv_bn_eval(conv, norm, transpose=transposed)
            layers[index + 1] = nn.Identity()
