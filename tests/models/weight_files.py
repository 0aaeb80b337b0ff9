"""Networks with seeded weights, for the tests of weight files."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_sr.models import Generator, build_generator
from ray_sr.recipes.networks import (
    CompactSpec,
    GeneratorSpec,
    MSRResNetSpec,
    NetworkSpec,
    RRDBNetSpec,
)

RRDB = RRDBNetSpec(blocks=2, channels=8, growth=4)
MSR = MSRResNetSpec(blocks=2, channels=8)
COMPACT = CompactSpec(convs=3, channels=8)


def network(generator: GeneratorSpec, scale: int = 4, value_range: str = "unit") -> NetworkSpec:
    return NetworkSpec.model_validate({"scale": scale, "value_range": value_range, "generator": generator})


def made(spec: NetworkSpec, seed: int = 0) -> Generator:
    """A generator whose every parameter has a seeded value of visible size."""
    module = build_generator(spec).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return module


def photo(height: int = 9, width: int = 7) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def same_output(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return torch.allclose(one(photo()), other(photo()), atol=1e-6)


def random_state(shapes: dict[str, tuple[int, int]], seed: int = 3) -> dict[str, Tensor]:
    """3x3 convolutions by name, (outputs, inputs) each."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (outputs, inputs) in shapes.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=draw) * 0.1
        state[f"{name}.bias"] = torch.randn(outputs, generator=draw) * 0.1
    return state
