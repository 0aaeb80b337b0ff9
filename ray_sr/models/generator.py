"""What every generator has: its capability, which the upscaling engine plans by, and its origin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ray_sr.recipes.networks import NetworkSpec

# Radius in input pixels assumed for networks whose receptive field is unknown. Generous for most generators, but
# no bound: attention and very deep networks can see further, and their tiles then differ from the whole.
UNKNOWN_RECEPTIVE_FIELD = 64


@dataclass(frozen=True)
class Capability:
    """What a caller has to know of a generator to run it on a photo, whole or in tiles.

    `multiple`: the grid the network works on, in input pixels. Any input size is accepted (the network pads
    itself), but a tile agrees with the whole image only where it starts at a multiple.
    `receptive_field`: how far from its own place, in input pixels, an output pixel sees through the
    convolutions; a tile's inner part is exact when it has this much image around it.
    `bf16`: whether the network may run in bfloat16. `whole_image_norm`: statistics of the whole image enter
    every pixel (InstanceNorm), so that tiles differ from the whole however much they overlap. `residual`: the
    last convolution gives only what is then added to the enlarged input, so rounding it costs the picture little.
    """

    scale: int
    channels: int
    multiple: int
    receptive_field: int
    bf16: bool
    whole_image_norm: bool
    residual: bool = False


class Generator(nn.Module):
    """A network N×3×h×w -> N×3×(h·scale)×(w·scale), any h and w from 1; the output is not clamped.

    `network` is the spec it was built from, None for what has no weights (bicubic).
    """

    capability: Capability
    network: NetworkSpec | None = None

    def limits(self) -> list[str]:
        """What it was found that the network cannot bear, for people; see SpandrelGenerator."""
        return []
