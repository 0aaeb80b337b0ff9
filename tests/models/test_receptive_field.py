from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_sr.models import Bicubic, Generator, build_generator
from ray_sr.recipes.networks import (
    CompactSpec,
    DeblurGANSpec,
    MSRResNetSpec,
    NetworkSpec,
    RRDBNetSpec,
    SRResNetSpec,
    UpResNetSpec,
)
from tests.models.networks import NETWORKS, build, name

# Deeper RRDBNets cannot be measured so: what reaches the edge of the field is below float64's range.
FULL = [
    NetworkSpec(scale=scale, generator=spec.model_copy(update={"channels": 4}))
    for spec in (
        SRResNetSpec(),
        MSRResNetSpec(),
        RRDBNetSpec(blocks=6, growth=4),
        CompactSpec(),
        UpResNetSpec(),
    )
    for scale in (max(spec.scales), min(spec.scales))
] + [NetworkSpec(scale=1, generator=DeblurGANSpec(channels=4, norm="batch"))]


class _Scaled(nn.Module):
    """Stands in for a norm (InstanceNorm mixes the whole image) where only the convolutions are of interest."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features / 2


def averaging(generator: Generator, height: int) -> Generator:
    """The same layers in float64 with positive weights, so that nothing that is seen can cancel out.

    Each convolution is an average over what it finds in `height` rows: values stay small in deep networks.
    """
    generator = generator.double().eval()
    for parent in list(generator.modules()):
        for key, child in parent.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.BatchNorm2d):
                setattr(parent, key, _Scaled())
            elif isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.constant_(child.weight, 1 / child.weight[0, :, :height].numel())
                assert child.bias is None or nn.init.zeros_(child.bias) is child.bias
    return generator


def seen_radius(generator: Generator, height: int) -> int:
    """The farthest input column that any column of one period of the output depends on, by gradients."""
    capability = generator.capability
    middle = -(-(capability.receptive_field + 8) // capability.multiple) * capability.multiple
    columns = torch.arange(2 * middle + capability.multiple)
    image = torch.rand(1, 3, height, len(columns), dtype=torch.float64, requires_grad=True)
    result = generator(image * 0.1 + 0.01)
    farthest = 0
    for place in range(capability.multiple * capability.scale):
        column = result[..., middle * capability.scale + place].sum()
        (gradient,) = torch.autograd.grad(column, image, retain_graph=True)
        seen = columns[gradient.abs().amax((0, 1, 2)) > 0]
        assert int(seen.min()) > 0, "the picture is too small for the measurement"
        assert int(seen.max()) < len(columns) - 1, "the picture is too small for the measurement"
        centre = middle + place // capability.scale
        farthest = max(farthest, centre - int(seen.min()), int(seen.max()) - centre)
    return farthest


@pytest.mark.parametrize("network", NETWORKS, ids=name)
def test_small_networks_see_their_receptive_field_and_no_further(network: NetworkSpec) -> None:
    torch.manual_seed(0)
    generator = averaging(build_generator(network), height=8)
    seen = seen_radius(generator, height=8)
    if network.generator.kind == "rlfn":  # the gradient of its pooling goes to the largest value alone
        assert 2 < seen <= generator.capability.receptive_field
    else:
        assert seen == generator.capability.receptive_field


@pytest.mark.parametrize("network", FULL, ids=name)
def test_full_depth_networks_see_exactly_their_receptive_field(network: NetworkSpec) -> None:
    torch.manual_seed(0)
    height = 8 if network.generator.kind == "deblurgan" else 1
    generator = averaging(build_generator(network), height)
    assert seen_radius(generator, height) == generator.capability.receptive_field


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_sees_two_pixels(scale: int) -> None:
    generator = Bicubic(scale)
    assert generator.capability.receptive_field == 2
    assert seen_radius(generator, height=2) == 2


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # Ten convolutions of radius 1 at the input's size; the pixel shuffle adds nothing.
        (NetworkSpec(scale=4, generator=CompactSpec(convs=8)), 10),
        # 1 + 2·1 at the input's size, 1/1 before the shuffle, then 2 pixels at x2: one more input pixel.
        (NetworkSpec(scale=2, generator=MSRResNetSpec(blocks=1)), 5),
        # 9x9 sees 4, blocks 2, tail 1, before the shuffle 1; the last 4 of x2: two more input pixels.
        (NetworkSpec(scale=2, generator=SRResNetSpec(blocks=1)), 10),
    ],
    ids=lambda value: name(value) if isinstance(value, NetworkSpec) else None,
)
def test_receptive_fields_reckoned_by_hand(network: NetworkSpec, expected: int) -> None:
    assert build_generator(network).capability.receptive_field == expected


@pytest.mark.parametrize(
    "network",
    [network for network in NETWORKS if not build(network).capability.whole_image_norm],
    ids=name,
)
def test_a_tile_with_its_receptive_field_around_it_is_exact(network: NetworkSpec) -> None:
    generator = build(network).double().eval()
    capability = generator.capability
    margin = -(-capability.receptive_field // capability.multiple) * capability.multiple
    inner = 2 * capability.multiple
    start = 3 * capability.multiple
    side = start + 2 * margin + inner + 5
    image = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    part = slice(start, start + 2 * margin + inner)
    with torch.no_grad():
        whole, tile = generator(image), generator(image[..., part, part])
    scale = capability.scale
    at_tile = slice(margin * scale, (margin + inner) * scale)
    at_whole = slice((start + margin) * scale, (start + margin + inner) * scale)
    torch.testing.assert_close(tile[..., at_tile, at_tile], whole[..., at_whole, at_whole])
