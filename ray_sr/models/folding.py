"""Merging BatchNorm into the convolutions before it, for faster upscaling with the same result."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from ray_sr.models.generator import Generator


def fold_batchnorm(generator: Generator) -> Generator:
    """A copy in eval mode with each BatchNorm that follows a convolution folded into its weights and bias.

    The outputs equal those of `generator.eval()` up to rounding; `generator` is left as it was. The copy is
    for inference: nothing in it is trainable, and its state dict does not load into the network it came from.
    A network without BatchNorm is copied as it is.
    """
    folded = copy.deepcopy(generator).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold_pairs(module)
    return folded


def _fold_pairs(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        conv, norm = layers[index], layers[index + 1]
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
            transposed = isinstance(conv, nn.ConvTranspose2d)
            layers[index] = fuse_conv_bn_eval(conv, norm, transpose=transposed)
            layers[index + 1] = nn.Identity()
