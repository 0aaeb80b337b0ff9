from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ray_sr.errors import ModelError
from ray_sr.models import build_generator, count_parameters
from ray_sr.models.generator import Generator
from ray_sr.models.layers import ShuffledConv
from ray_sr.recipes.networks import (
    CompactSpec,
    DeblurGANSpec,
    GeneratorSpec,
    MSRResNetSpec,
    NetworkSpec,
    RRDBNetSpec,
    SRResNetSpec,
    UpResNetSpec,
)
from tests.models.networks import NETWORKS, build, name

every_network = pytest.mark.parametrize("network", NETWORKS, ids=name)


def picture(height: int, width: int, count: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("spec", "scale", "trainable", "buffers"),
    [
        # 33 BatchNorm layers of 64 channels: the published 1,547,350 counts what is trained.
        (SRResNetSpec(), 4, 1_547_350, 33 * 128),
        (MSRResNetSpec(), 4, 1_517_571, 0),
        # 1,792 of the first convolution, 73,856 of each block, 27,696 of the last.
        (MSRResNetSpec(upsampling="direct"), 4, 1_792 + 16 * 73_856 + 27_696, 0),
        (RRDBNetSpec(), 4, 16_697_987, 0),
        (CompactSpec(), 4, 621_424, 0),  # realesr-animevideov3
        (CompactSpec(convs=32), 4, 1_213_296, 0),  # realesr-general-x4v3
        (UpResNetSpec(), 2, 595_395, 1_024),
        (DeblurGANSpec(), 1, 11_378_179, 0),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_published_sizes(spec: GeneratorSpec, scale: int, trainable: int, buffers: int) -> None:
    counts = count_parameters(build_generator(NetworkSpec(scale=scale, generator=spec)))
    assert counts == {"parameters": trainable + buffers, "trainable": trainable, "buffers": buffers}


def test_deblurgan_in_its_batchnorm_form_has_the_size_of_its_table() -> None:
    spec = DeblurGANSpec(norm="batch", upsampling="nearest")
    counts = count_parameters(build_generator(NetworkSpec(scale=1, generator=spec)))
    normalised = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64
    assert counts["trainable"] == 11_378_179 + 2 * normalised
    assert counts["buffers"] == 2 * normalised


def test_frozen_weights_are_counted_but_not_as_trainable() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module[0].requires_grad_(False)
    assert count_parameters(module) == {"parameters": 16 + 16, "trainable": 8, "buffers": 16 + 8}


# ------------------------------------------------------------------------------- shapes and results


@every_network
def test_every_size_is_enlarged_by_the_scale(network: NetworkSpec) -> None:
    generator = build(network).eval()
    assert generator.network == network
    assert generator.capability.scale == network.scale
    for height, width in ((1, 1), (1, 6), (5, 2), (7, 9), (12, 8)):
        result = generator(picture(height, width, count=2))
        assert result.shape == (2, 3, height * network.scale, width * network.scale)
        assert torch.isfinite(result).all()


@every_network
def test_images_of_a_batch_do_not_touch_each_other(network: NetworkSpec) -> None:
    generator = build(network).eval()
    images = picture(9, 8, count=3)
    together = generator(images)
    for index in range(3):
        torch.testing.assert_close(
            together[index : index + 1], generator(images[index : index + 1]), rtol=1e-4, atol=1e-4
        )


@every_network
def test_every_weight_takes_part(network: NetworkSpec) -> None:
    generator = build(network).train()
    generator(picture(16, 16, count=2)).square().mean().backward()
    for key, weight in generator.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
        assert weight.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    "network", [network for network in NETWORKS if build(network).capability.multiple > 1], ids=name
)
def test_sizes_off_the_grid_are_padded_by_repetition(network: NetworkSpec) -> None:
    generator = build(network).eval()
    multiple, scale = generator.capability.multiple, network.scale
    image = picture(4 * multiple - 1, 3 * multiple - (multiple - 1))
    bottom, right = 1, multiple - 1
    padded = F.pad(image, (0, right, 0, bottom), mode="replicate")
    expected = generator(padded)[..., : image.shape[2] * scale, : image.shape[3] * scale]
    torch.testing.assert_close(generator(image), expected)


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        (MSRResNetSpec(blocks=1), "bilinear"),
        (MSRResNetSpec(blocks=1, upsampling="direct"), "bilinear"),
        (CompactSpec(convs=1), "nearest"),
    ],
)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_without_a_residual_the_input_is_interpolated(spec: GeneratorSpec, mode: str, scale: int) -> None:
    generator = build_generator(NetworkSpec(scale=scale, generator=spec))
    last = generator.conv_last if mode == "bilinear" else generator.body[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    image = picture(5, 6)
    torch.testing.assert_close(generator(image), F.interpolate(image, scale_factor=scale, mode=mode))


def test_deblurgan_adds_a_bounded_residual() -> None:
    generator = build(NetworkSpec(scale=1, generator=DeblurGANSpec(blocks=1, channels=4)))
    with torch.no_grad():
        generator.model[-2].weight.mul_(100)
    image = picture(16, 16)
    residual = generator.eval()(image) - image
    assert residual.abs().max() <= 1 + 1e-6
    assert residual.abs().max() > 0.99


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_shuffled_as_the_paper_does(factor: int, memory: torch.memory_format) -> None:
    """(C·r², H, W) -> (C, H·r, W·r): channel c·r² + i·r + j goes to row i, column j of each r×r square."""
    torch.manual_seed(0)
    layer = ShuffledConv(5, 4, factor).double()
    features = torch.randn(2, 5, 6, 7, dtype=torch.float64).to(memory_format=memory).requires_grad_()
    made = F.conv2d(features, layer.weight, layer.bias, padding=1)
    enlarged = layer(features)
    for row in range(factor):
        for column in range(factor):
            expected = made[:, row * factor + column :: factor**2]
            torch.testing.assert_close(enlarged[:, :, row::factor, column::factor], expected)
    downstream = torch.randn_like(enlarged)
    inputs = (features, layer.weight, layer.bias)
    found = torch.autograd.grad(enlarged, inputs, downstream)
    wanted = torch.autograd.grad(F.pixel_shuffle(made, factor), inputs, downstream)
    torch.testing.assert_close(found, wanted)


# ------------------------------------------------------------------------------------- value range


@every_network
def test_signed_networks_see_and_make_signed_values(network: NetworkSpec) -> None:
    plain = build(network).eval()
    signed = build(network.model_copy(update={"value_range": "signed"})).eval()
    assert list(signed.state_dict()) == list(plain.state_dict())
    image = picture(8, 8)
    torch.testing.assert_close(signed(image), (plain(image * 2 - 1) + 1) / 2)


# --------------------------------------------------------------------------- copies and precisions


@every_network
def test_weights_survive_a_round_trip(network: NetworkSpec) -> None:
    generator, other = build(network, seed=1).eval(), build(network, seed=2).eval()
    image = picture(8, 8)
    assert not torch.allclose(generator(image), other(image))
    other.load_state_dict(generator.state_dict())
    torch.testing.assert_close(other(image), generator(image), rtol=0, atol=0)


@pytest.mark.parametrize("value_range", ["unit", "signed"])
@every_network
def test_copies_are_independent_equals(network: NetworkSpec, value_range: str) -> None:
    network = network.model_copy(update={"value_range": value_range})
    generator = build(network)
    generator(picture(16, 16, count=2)).mean().backward()
    generator.eval()
    image = picture(8, 8)
    expected = generator(image).detach()
    for twin in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):  # noqa: S301
        torch.testing.assert_close(twin(image), expected, rtol=0, atol=0)
        assert twin.capability == generator.capability
        assert twin.network == network
        with torch.no_grad():
            for weight in twin.parameters():
                weight.zero_()
        torch.testing.assert_close(generator(image), expected, rtol=0, atol=0)


@every_network
def test_channels_last_changes_nothing(network: NetworkSpec) -> None:
    generator = build(network).eval()
    image = picture(9, 8)
    expected = generator(image)
    generator.to(memory_format=torch.channels_last)
    result = generator(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@every_network
def test_bfloat16_stays_close(network: NetworkSpec) -> None:
    generator = build(network).eval()
    image = picture(16, 16)
    expected = generator(image).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = generator(image).detach().float()
    error = (result - expected).square().mean().sqrt()
    assert error < 0.03 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        NetworkSpec(scale=4, value_range="signed", generator=SRResNetSpec(blocks=1, channels=4)),
        NetworkSpec(scale=3, generator=MSRResNetSpec(blocks=1, channels=4)),
        NetworkSpec(scale=2, generator=RRDBNetSpec(blocks=1, channels=4, growth=4)),
        NetworkSpec(scale=2, generator=CompactSpec(convs=1, channels=4)),
        NetworkSpec(scale=2, generator=UpResNetSpec(blocks=1, channels=4)),
        NetworkSpec(scale=1, value_range="signed", generator=DeblurGANSpec(blocks=1, channels=4)),
        NetworkSpec(scale=1, generator=DeblurGANSpec(blocks=1, channels=4, norm="batch", upsampling="nearest")),
    ],
    ids=name,
)
def test_compiles_in_one_piece_with_free_sizes(network: NetworkSpec) -> None:
    generator = build(network).eval()
    torch.compiler.reset()
    compiled = torch.compile(generator, backend="aot_eager", fullgraph=True, dynamic=True)
    assert compiled.capability == generator.capability
    with torch.no_grad():
        for height, width in ((8, 12), (13, 9)):
            image = picture(height, width)
            torch.testing.assert_close(compiled(image), generator(image), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------ starting weights


def test_msrresnet_starts_near_its_bilinear_skip() -> None:
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=4, generator=MSRResNetSpec()))
    for conv in (generator.body[3].conv1, generator.conv_last):
        assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (64 * 9)) ** 0.5, rel=0.05)
        assert not conv.bias.any()
    assert generator.conv_hr.weight.std().item() == pytest.approx((1 / (3 * 64 * 9)) ** 0.5, rel=0.05)
    image = picture(12, 16)
    with torch.no_grad():
        difference = generator(image) - F.interpolate(image, scale_factor=4, mode="bilinear")
    assert difference.abs().max() < 0.1


@pytest.mark.parametrize("upsampling", ["progressive", "direct"])
@pytest.mark.parametrize("scale", [2, 4])
def test_msrresnet_learns_from_its_first_step(upsampling: str, scale: int) -> None:
    """Adam hardly moves what has gradients below its epsilon of 1e-8."""
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=scale, generator=MSRResNetSpec(upsampling=upsampling)))
    lr, hr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16 * scale, 16 * scale)
    F.l1_loss(generator(lr), hr).backward()
    for key, parameter in generator.named_parameters():
        assert parameter.grad.abs().mean() > 2e-8, key


def test_rrdbnet_scales_only_the_dense_convolutions_down() -> None:
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=4, generator=RRDBNetSpec(blocks=1)))
    dense, trunk = generator.body[0].rdb2.conv3, generator.conv_body
    assert dense.weight.std().item() == pytest.approx(0.1 * (2 / (128 * 9)) ** 0.5, rel=0.05)
    assert trunk.weight.std().item() == pytest.approx((1 / (3 * 64 * 9)) ** 0.5, rel=0.05)
    assert trunk.bias.any()


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_deblurgan_starts_from_small_normal_weights(upsampling: str) -> None:
    torch.manual_seed(0)
    spec = DeblurGANSpec(norm="batch", blocks=1, upsampling=upsampling)
    generator = build_generator(NetworkSpec(scale=1, generator=spec))
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)


def test_deblurgan_without_normalisation_starts_near_its_input_and_lets_gradients_through() -> None:
    torch.manual_seed(0)
    spec = DeblurGANSpec(norm="none", dropout=0, channels=16)
    generator = build_generator(NetworkSpec(scale=1, generator=spec))
    image = picture(32, 32)
    residual = generator(image) - image
    assert 1e-3 < residual.std() < 0.2
    residual.square().mean().backward()
    first = generator.model[1].weight
    assert first.grad is not None
    assert first.grad.norm() > 1e-5 * first.norm()


def test_deblurgan_drops_out_in_training_only() -> None:
    generator = build(NetworkSpec(scale=1, generator=DeblurGANSpec(blocks=1, channels=8)))
    image = picture(16, 16)
    assert not torch.equal(generator.train()(image), generator(image))
    assert torch.equal(generator.eval()(image), generator(image))


# ------------------------------------------------------------------------------------ capability


@pytest.mark.parametrize("network", [network for network in NETWORKS if network.generator.kind != "rlfn"], ids=name)
def test_only_instance_norm_looks_at_the_whole_image(network: NetworkSpec) -> None:
    """Far outside the receptive field, a change matters exactly to networks with whole-image statistics."""
    generator = build(network).eval()
    capability = generator.capability
    far = capability.receptive_field + 2 * capability.multiple
    image = picture(8, far + 9)
    changed = image.clone()
    changed[..., -1] = 1 - changed[..., -1]
    first = capability.scale * capability.multiple
    difference = (generator(image) - generator(changed))[..., :first].abs().max()
    assert (difference > 0) == capability.whole_image_norm


@pytest.mark.parametrize("network", [net for net in NETWORKS if net.generator.kind == "rlfn"], ids=name)
def test_the_attention_of_rlfn_lies_where_the_pictures_size_puts_it(network: NetworkSpec) -> None:
    """Its pooled attention is stretched over the picture: more columns far away move it here too."""
    generator = build(network).eval()
    far = generator.capability.receptive_field
    image = picture(16, far + 24)
    cut = generator(image[..., : far + 17])
    whole = generator(image)
    assert generator.capability.whole_image_norm
    beyond_the_edges_reach = 16 * network.scale
    assert whole[..., :beyond_the_edges_reach].sub(cut[..., :beyond_the_edges_reach]).abs().max() > 0


def test_a_scale_the_network_does_not_offer_is_refused() -> None:
    with pytest.raises(ModelError, match="generator rrdbnet has no x3: choose from x1, x2, x4"):
        build_generator(NetworkSpec(scale=3, generator=RRDBNetSpec()))


# ---------------------------------------------------------------------------------- foreign names


def test_msrresnet_has_the_names_of_basicsr() -> None:
    generator = build_generator(NetworkSpec(scale=4, generator=MSRResNetSpec(blocks=2)))
    blocks = [f"body.{block}.conv{conv}" for block in range(2) for conv in (1, 2)]
    layers = ["conv_first", *blocks, "upconv1", "upconv2", "conv_hr", "conv_last"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert sorted(generator.state_dict()) == sorted(expected)


def in_spandrel(generator: Generator) -> nn.Module:
    spandrel = pytest.importorskip("spandrel")
    return spandrel.ModelLoader(device="cpu").load_from_state_dict(generator.state_dict())


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_spandrel_runs_rrdbnet_with_the_same_result(scale: int) -> None:
    network = NetworkSpec(scale=scale, generator=RRDBNetSpec(blocks=2, channels=8))
    generator = build(network).eval()
    model = in_spandrel(generator)
    assert (model.architecture.id, model.scale) == ("ESRGAN", scale)
    image = picture(8, 12)
    torch.testing.assert_close(model.model(image), generator(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_spandrel_runs_compact_with_the_same_result(scale: int) -> None:
    generator = build(NetworkSpec(scale=scale, generator=CompactSpec(convs=2, channels=8))).eval()
    model = in_spandrel(generator)
    assert (model.architecture.id, model.scale) == ("Compact", scale)
    image = picture(7, 5)
    torch.testing.assert_close(model.model(image), generator(image), rtol=1e-4, atol=1e-5)
