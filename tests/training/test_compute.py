"""Precision inside the networks while they are trained."""

from __future__ import annotations

import copy

import torch

from ray_sr.models import build_generator
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from ray_sr.training.compute import Compute

BF16 = Compute(torch.device("cpu"), torch.bfloat16, torch.contiguous_format)


def test_the_pictures_own_values_are_not_rounded_to_bfloat16() -> None:
    """The last convolution runs in float32 under autocast, and the weights and statistics stay what they are."""
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=2, generator=SRResNetSpec(blocks=1, channels=8)))
    before = copy.deepcopy(generator.state_dict())
    BF16.with_exact_end(generator)
    BF16.with_exact_end(generator)  # of the next stage
    assert generator.training
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    with BF16.autocast():
        photos = generator(torch.rand(2, 3, 16, 16))
    assert photos.dtype == torch.float32
    assert not torch.equal(photos, photos.bfloat16().float())
    photos.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
