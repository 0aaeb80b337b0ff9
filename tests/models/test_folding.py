from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_sr.models import Bicubic, build_generator, folded
from ray_sr.models.span import BranchedConv
from ray_sr.recipes.networks import NetworkSpec, SRResNetSpec
from tests.models.networks import NETWORKS, build, name


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d | BranchedConv) for part in module.modules())


@pytest.mark.parametrize("value_range", ["unit", "signed"])
@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_folding_removes_every_batchnorm_and_keeps_the_result(network: NetworkSpec, value_range: str) -> None:
    generator = build(network.model_copy(update={"value_range": value_range})).train()
    before = {key: tensor.clone() for key, tensor in generator.state_dict().items()}
    flat = folded(generator)

    assert norms(flat) == 0
    assert generator.training
    assert not flat.training
    assert generator.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in generator.state_dict().items())
    assert (flat.capability, flat.network) == (generator.capability, generator.network)
    image = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(5))
    expected = generator.eval()(image)
    largest = float(expected.detach().abs().max().clamp(min=1))  # random branches make values of some hundreds
    torch.testing.assert_close(flat(image), expected, rtol=1e-5, atol=1e-5 * largest)


def test_folding_after_training_uses_the_running_statistics() -> None:
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=4, generator=SRResNetSpec()))
    for _ in range(3):
        generator(torch.rand(4, 3, 12, 12))
    flat = folded(generator)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        difference = (flat(image) - generator.eval()(image)).abs().max()
    assert difference < 1e-5
    assert not list(flat.buffers())


def test_networks_without_batchnorm_are_copied() -> None:
    bicubic = Bicubic(2)
    flat = folded(bicubic)
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    assert flat is not bicubic
    assert torch.equal(flat(image), bicubic(image))
