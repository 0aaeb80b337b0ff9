"""Small networks of every family and scale, for the tests of this folder."""

from __future__ import annotations

import torch

from ray_sr.models import Generator, build_generator
from ray_sr.recipes.networks import (
    CompactSpec,
    DeblurGANSpec,
    GeneratorSpec,
    MSRResNetSpec,
    NetworkSpec,
    RLFNSpec,
    RRDBNetSpec,
    SPANSpec,
    SRResNetSpec,
    UpResNetSpec,
)

SMALL: list[GeneratorSpec] = [
    SRResNetSpec(blocks=2, channels=4),
    MSRResNetSpec(blocks=2, channels=4),
    MSRResNetSpec(blocks=2, channels=4, upsampling="direct"),
    RRDBNetSpec(blocks=1, channels=4, growth=4),
    CompactSpec(convs=2, channels=4),
    CompactSpec(convs=2, channels=4, activation="relu"),
    CompactSpec(convs=2, channels=4, activation="leakyrelu"),
    UpResNetSpec(blocks=2, channels=4),
    DeblurGANSpec(blocks=1, channels=4),
    DeblurGANSpec(blocks=1, channels=4, norm="batch", upsampling="nearest"),
    DeblurGANSpec(blocks=1, channels=4, norm="batch"),
    DeblurGANSpec(blocks=1, channels=4, norm="none", upsampling="nearest"),
    SPANSpec(blocks=2, channels=4),
    SPANSpec(blocks=1, channels=4, branches=False, skip=True, published_input=True),
    RLFNSpec(blocks=2, channels=4, attention=2),
    RLFNSpec(blocks=1, channels=4, inner=6, attention=2, skip=True),
]
NETWORKS = [NetworkSpec(scale=scale, generator=spec) for spec in SMALL for scale in spec.scales]


def name(network: NetworkSpec) -> str:
    """A short name for pytest's list."""
    options = network.generator.model_dump(include={"activation", "norm", "upsampling"}).values()
    skip = ["skip"] if getattr(network.generator, "skip", False) else []
    return "-".join([network.generator.kind, f"x{network.scale}", *options, *skip])


def build(network: NetworkSpec, seed: int = 0) -> Generator:
    """The generator with seeded weights and BatchNorm statistics, every layer of which has some effect."""
    torch.manual_seed(seed)
    generator = build_generator(network)
    with torch.no_grad():
        for key, tensor in generator.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
            elif tensor.ndim == 4:
                tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5)
        if network.generator.kind == "span" and network.generator.published_input:
            generator.get_parameter("conv_1.weight").div_(255)  # it is fed values of 255: keeps the output near 1
    return generator
