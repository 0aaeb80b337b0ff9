from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ray_sr.errors import ModelError
from ray_sr.models import build_discriminator, count_parameters
from ray_sr.models.discriminators import FeatureTaps
from ray_sr.models.spectral_norm import SpectralConv2d
from ray_sr.recipes.networks import (
    DenseCriticSpec,
    DiscriminatorSpec,
    MultiScaleSpec,
    PatchGANSpec,
    SRGANDiscriminatorSpec,
    TinyDiscriminatorSpec,
    UNetDiscriminatorSpec,
    VGGDiscriminatorSpec,
)

SMALL: list[DiscriminatorSpec] = [
    SRGANDiscriminatorSpec(channels=4, hidden=8),
    VGGDiscriminatorSpec(channels=4, hidden=8),
    TinyDiscriminatorSpec(channels=4),
    PatchGANSpec(channels=4),
    PatchGANSpec(channels=4, norm="batch", layers=6),
    UNetDiscriminatorSpec(channels=4),
    DenseCriticSpec(channels=4, hidden=8),
    DenseCriticSpec(channels=4, hidden=8, sigmoid=False),
    PatchGANSpec(channels=4, norm="spectral"),
    MultiScaleSpec(channels=4),
]
every_spec = pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.kind)


def images(crop: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, crop, crop, generator=torch.Generator().manual_seed(seed))


def build(spec: DiscriminatorSpec, crop: int, value_range: str = "unit", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_discriminator(spec, crop, value_range)


@pytest.mark.parametrize(
    ("spec", "crop", "trainable"),
    [
        (VGGDiscriminatorSpec(), 128, 14_499_401),
        (TinyDiscriminatorSpec(), 96, 1_857),
        (PatchGANSpec(), 256, 2_764_737),
        (UNetDiscriminatorSpec(), 256, 4_376_897),
        (SRGANDiscriminatorSpec(), 96, 23_563_649),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_published_sizes(spec: DiscriminatorSpec, crop: int, trainable: int) -> None:
    assert count_parameters(build(spec, crop))["trainable"] == trainable


def test_vgg_for_256_pixels_has_one_more_pair() -> None:
    trainable = count_parameters(build(VGGDiscriminatorSpec(), 256))["trainable"]
    assert trainable == 14_499_401 + 512 * 512 * (9 + 16) + 4 * 512


@pytest.mark.parametrize("crop", [32, 96, 128])
def test_dense_critic_has_the_layers_of_its_table(crop: int) -> None:
    weights = [(3, 64), (64, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    convolutions = sum(16 * inputs * outputs + outputs for inputs, outputs in weights)
    norms = 2 * sum(outputs for _, outputs in weights[1:])
    dense = (crop // 16) ** 2 * 1024 + 1024 + 1024 + 1
    assert count_parameters(build(DenseCriticSpec(), crop))["trainable"] == convolutions + norms + dense


@every_spec
@pytest.mark.parametrize("extra", [0, 1, 16, 37, 96])
def test_every_crop_from_the_smallest_on_is_judged(spec: DiscriminatorSpec, extra: int) -> None:
    crop = spec.minimum_crop + extra
    result = build(spec, crop)(images(crop))
    assert result.shape[:2] == (2, 1)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (SRGANDiscriminatorSpec(channels=4), (2, 1)),
        (TinyDiscriminatorSpec(), (2, 1)),
        (PatchGANSpec(channels=4), (2, 1, 35, 35)),
        (UNetDiscriminatorSpec(channels=4), (2, 1, 256, 256)),
        (DenseCriticSpec(channels=4), (2, 1)),
        (MultiScaleSpec(channels=4, scales=3), (2, 1, 768, 256)),
        (MultiScaleSpec(channels=4, base="patchgan"), (2, 1, 70, 35)),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_output_shapes_at_256_pixels(spec: DiscriminatorSpec, shape: tuple[int, ...]) -> None:
    assert build(spec, 256)(images(256)).shape == shape


@every_spec
def test_signed_discriminators_see_signed_values(spec: DiscriminatorSpec) -> None:
    plain, signed = build(spec, 32).eval(), build(spec, 32, "signed").eval()
    assert list(signed.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(signed(images(32)), plain(images(32) * 2 - 1))


@every_spec
def test_every_weight_takes_part(spec: DiscriminatorSpec) -> None:
    discriminator = build(spec, 48)
    discriminator(images(48, count=4)).square().mean().backward()
    for key, weight in discriminator.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
        if weight.ndim != 1:  # a bias before a norm has no effect
            assert weight.grad.abs().max() > 0, key


@every_spec
def test_real_and_fake_can_be_judged_before_one_backward(spec: DiscriminatorSpec) -> None:
    discriminator = build(spec, 32)
    real, fake = discriminator(images(32, seed=1)), discriminator(images(32, seed=2))
    (fake.mean() - real.mean()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in discriminator.parameters())


@every_spec
def test_gradient_penalties_reach_the_weights(spec: DiscriminatorSpec) -> None:
    discriminator = build(spec, 32)
    samples = images(32).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(samples).sum(), samples, create_graph=True)
    (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
    reached = [weight.grad for weight in discriminator.parameters() if weight.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in reached)


@every_spec
def test_copies_round_trips_and_layouts_agree(spec: DiscriminatorSpec) -> None:
    discriminator = build(spec, 32, "signed")
    discriminator(images(32)).mean().backward()
    discriminator.eval()
    expected = discriminator(images(32)).detach()
    twin = copy.deepcopy(discriminator)
    torch.testing.assert_close(twin(images(32)), expected, rtol=0, atol=0)
    other = build(spec, 32, "signed", seed=9).eval()
    other.load_state_dict(discriminator.state_dict())
    torch.testing.assert_close(other(images(32)), expected, rtol=0, atol=0)
    other.to(memory_format=torch.channels_last)
    result = other(images(32).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@every_spec
def test_bfloat16_stays_close(spec: DiscriminatorSpec) -> None:
    discriminator = build(spec, 48).eval()
    expected = discriminator(images(48)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = discriminator(images(48)).detach().float()
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SMALL[1], SMALL[5]], ids=lambda spec: spec.kind)
def test_compiles_in_one_piece(spec: DiscriminatorSpec) -> None:
    torch.compiler.reset()
    eager, twin = build(spec, 32), build(spec, 32)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        result, expected = compiled(images(32, seed=seed)), eager(images(32, seed=seed))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    for key, tensor in eager.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], tensor)


def test_each_scale_is_judged_by_a_discriminator_of_its_own_and_weighs_alike() -> None:
    spec = MultiScaleSpec(channels=4, scales=3)
    discriminator = build(spec, 64).eval()
    photos, means = images(64), []
    for number, critic in enumerate(discriminator.critics):
        if number:
            photos = nn.functional.avg_pool2d(photos, 3, 2, 1, count_include_pad=False)
        means.append(critic(photos).mean((1, 2, 3)))
    found = discriminator(images(64)).mean((1, 2, 3))
    torch.testing.assert_close(found, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert len(set(means)) == 3
    assert spec.minimum_crop == 64
    assert MultiScaleSpec(base="patchgan").minimum_crop == 64
    with pytest.raises(ModelError, match="discriminator multiscale needs crops from 64 px on, not 63"):
        build_discriminator(spec, 63, "unit")


@pytest.mark.parametrize(("spec", "layers"), [(SMALL[1], 10), (SMALL[2], 1), (SMALL[5], 9), (SMALL[9], 18)])
def test_features_are_those_of_every_convolution_but_the_logits(spec: DiscriminatorSpec, layers: int) -> None:
    discriminator = build(spec, 32)
    taps = FeatureTaps(discriminator)
    with taps.recorded() as features:
        discriminator(images(32))
        discriminator(images(32, seed=1))
    assert len(features) == 2 * layers
    assert [feature.shape for feature in features[:layers]] == [feature.shape for feature in features[layers:]]
    assert all(feature.shape[1] > 1 for feature in features)
    discriminator(images(32))
    assert len(features) == 2 * layers


def test_the_sigmoid_is_the_last_thing_a_dense_critic_does() -> None:
    logits, chances = build(SMALL[7], 32).eval(), build(SMALL[6], 32).eval()
    torch.testing.assert_close(chances(images(32)), torch.sigmoid(logits(images(32))))


def test_crops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="discriminator vgg needs crops from 32 px on, not 31"):
        build_discriminator(VGGDiscriminatorSpec(), 31, "unit")
    with pytest.raises(ModelError, match="discriminator vgg is made for 128 px and cannot take 96"):
        build_discriminator(VGGDiscriminatorSpec(input_size=128), 96, "unit")


# ---------------------------------------------------------------------------------- foreign names


def test_vgg_has_the_names_of_basicsr() -> None:
    keys = {key for key, _ in build(VGGDiscriminatorSpec(channels=4), 128).named_parameters()}
    expected = {"conv0_0.weight", "conv0_0.bias", "conv0_1.weight", "bn0_1.weight", "bn0_1.bias"}
    for pair in range(1, 5):
        for half in (0, 1):
            bn = f"bn{pair}_{half}"
            expected |= {f"conv{pair}_{half}.weight", f"{bn}.weight", f"{bn}.bias"}
    expected |= {f"linear{dense}.{kind}" for dense in (1, 2) for kind in ("weight", "bias")}
    assert keys == expected


def test_unet_has_the_names_of_basicsr() -> None:
    keys = set(build(UNetDiscriminatorSpec(channels=4), 32).state_dict())
    normed = {f"conv{index}.weight_{kind}" for index in range(1, 9) for kind in ("orig", "u", "v")}
    ends = {f"conv{index}.{kind}" for index in (0, 9) for kind in ("weight", "bias")}
    assert keys == normed | ends


# ---------------------------------------------------------------------------------- spectral norm


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_spectral_norm_follows_torch_step_by_step(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = SpectralConv2d(5, 7, kernel, stride)
    theirs = nn.utils.spectral_norm(nn.Conv2d(5, 7, kernel, stride, 1, bias=False))
    ours.load_state_dict(theirs.state_dict())
    for step in range(4):
        features = torch.randn(2, 5, 8, 8)
        if step == 3:
            ours.eval(), theirs.eval()
        torch.testing.assert_close(ours(features), theirs(features))
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], tensor)


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(4, 6, 3)
    for _ in range(50):
        conv(torch.randn(1, 4, 3, 3))
    largest = torch.linalg.matrix_norm(conv.weight_orig.flatten(1), ord=2)
    patch = torch.zeros(1, 4, 3, 3)
    patch[0, 0, 1, 1] = 1.0
    expected = conv.weight_orig[:, 0].flip(1, 2) / largest
    torch.testing.assert_close(conv.eval()(patch)[0], expected, rtol=1e-4, atol=1e-6)


def test_spectral_norm_is_not_rounded_by_autocast() -> None:
    torch.manual_seed(0)
    conv, twin = SpectralConv2d(16, 16, 3), SpectralConv2d(16, 16, 3)
    twin.load_state_dict(conv.state_dict())
    features = torch.randn(1, 16, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv(features)
    twin(features)
    assert torch.equal(conv.weight_u, twin.weight_u)
