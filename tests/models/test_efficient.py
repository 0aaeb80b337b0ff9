"""SPAN and RLFN against other implementations of their papers, with copied weights, and their files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sr.errors import ModelError
from ray_sr.models import build_generator, folded
from ray_sr.models.generator import Generator
from ray_sr.models.span import SPAN, BranchedConv
from ray_sr.models.weights import load_generator
from ray_sr.recipes.networks import GeneratorSpec, NetworkSpec, RLFNSpec, SPANSpec
from tests.shared_data import shared_folder


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def made(spec: GeneratorSpec, scale: int = 4) -> Generator:
    """With the starting weights and biases of some size: values multiply each other here and must stay small."""
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=scale, generator=spec))
    with torch.no_grad():
        for weight in generator.parameters():
            if weight.ndim == 1:
                weight.normal_(0, 0.1)
    return generator


# ---------------------------------------------------------------------------------------------- SPAN


def spandrel_span(generator: Generator, norm: bool) -> nn.Module:
    """spandrel's SPAN with our weights; its folded kernels are made by itself."""
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    from spandrel.architectures.SPAN import SPAN as Reference

    channels = generator.state_dict()["conv_1.sk.weight"].shape[0]
    scale = generator.capability.scale
    reference = Reference(num_in_ch=3, num_out_ch=3, feature_channels=channels, upscale=scale, norm=norm)
    reference.load_state_dict({**reference.state_dict(), **generator.state_dict()})
    return reference


@pytest.mark.parametrize("training", [True, False], ids=["branches", "folded by spandrel"])
@pytest.mark.parametrize("norm", [True, False])
def test_span_is_spandrels_span(norm: bool, training: bool) -> None:
    generator = made(SPANSpec(channels=8, published_input=norm))
    reference = spandrel_span(generator, norm).train(training).double()
    generator = generator.double()
    for size in ((7, 12), (3, 3), (1, 1)):  # the bias of the first 1x1 is there beyond the border as well
        image = picture(2, 3, *size).double()
        with torch.no_grad():
            torch.testing.assert_close(generator(image), reference(image), rtol=1e-5, atol=1e-5)


def test_branches_and_their_product_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    layer, image = BranchedConv(3, 5), picture(2, 3, 6, 7)
    by_product = torch.autograd.grad(layer(image).square().sum(), list(layer.parameters()))
    padded = F.pad(image, (1, 1, 1, 1))
    by_branches = torch.autograd.grad(
        (layer.conv(padded) + layer.sk(image)).square().sum(), list(layer.parameters())
    )
    for ours, theirs in zip(by_product, by_branches, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_folded_span_has_the_published_size_and_result() -> None:
    generator = made(SPANSpec())
    flat = folded(generator)
    assert sum(weight.numel() for weight in flat.parameters()) == 426_288
    assert not any(isinstance(module, BranchedConv) for module in flat.modules())
    image = picture(1, 3, 20, 17)
    with torch.no_grad():
        torch.testing.assert_close(flat(image), generator.eval()(image), rtol=1e-5, atol=1e-5)


def test_span_with_a_skip_starts_near_the_enlarged_input() -> None:
    torch.manual_seed(0)
    generator = build_generator(NetworkSpec(scale=2, generator=SPANSpec(skip=True)))
    image = picture(1, 3, 16, 16)
    with torch.no_grad():
        difference = generator(image) - F.interpolate(image, scale_factor=2, mode="bilinear")
    assert float(difference.abs().mean()) < 0.05


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("scale", [2, 4])
def test_public_span_files_are_read(tmp_path: Path, norm: bool, scale: int) -> None:
    """The folded kernels in such a file are those of another step: they are made anew."""
    generator = made(SPANSpec(channels=8, published_input=norm), scale)
    reference = spandrel_span(generator, norm)
    state = reference.state_dict()
    stale = {key: torch.zeros_like(value) if "eval_conv" in key else value for key, value in state.items()}
    torch.save({"params_ema": stale}, tmp_path / "span.pth")
    loaded, network = load_generator(tmp_path / "span.pth")
    assert isinstance(loaded, SPAN)
    assert network == NetworkSpec(scale=scale, generator=SPANSpec(channels=8, published_input=norm))
    image = picture(1, 3, 9, 8).double()
    with torch.no_grad():
        expected = reference.double().eval()(image)
        torch.testing.assert_close(loaded.double()(image), expected, rtol=1e-5, atol=1e-5)


def test_an_incomplete_span_file_is_refused(tmp_path: Path) -> None:
    state = made(SPANSpec(channels=8)).state_dict()
    del state["block_3.c2_r.conv.1.weight"]
    torch.save(state, tmp_path / "span.pth")
    with pytest.raises(ModelError, match=r"block_3\.c2_r\.conv\.1\.weight 16x16x3x3 is missing"):
        load_generator(tmp_path / "span.pth")


# ---------------------------------------------------------------------------------------------- RLFN


def rlfn_by_hand(state: dict[str, Tensor], blocks: int, image: Tensor, published: bool) -> Tensor:
    """The paper's figures 2 and 5, written with functions alone."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = state[f"{name}.weight"]
        around = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, around)

    def attention(name: str, x: Tensor) -> Tensor:
        narrow = conv(f"{name}.conv1", x)
        pooled = F.max_pool2d(conv(f"{name}.conv2", narrow, 2, 0), kernel_size=7, stride=3)
        far = F.interpolate(
            conv(f"{name}.conv3", pooled), (x.shape[2], x.shape[3]), mode="bilinear", align_corners=False
        )
        return x * conv(f"{name}.conv4", far + conv(f"{name}.conv_f", narrow)).sigmoid()

    first = y = conv("conv_1", image * (255 if published else 1))
    for block in (f"block_{number}" for number in range(1, blocks + 1)):
        inside = y
        for layer in ("c1_r", "c2_r", "c3_r"):
            inside = F.leaky_relu(conv(f"{block}.{layer}", inside), 0.05)
        y = attention(f"{block}.esa", conv(f"{block}.c5", inside + y))
    out = F.pixel_shuffle(conv("upsampler.0", conv("conv_2", y) + first), 4)
    return out / 255 if published else out


@pytest.mark.parametrize("published", [True, False])
def test_rlfn_follows_its_paper(published: bool) -> None:
    generator = made(RLFNSpec(blocks=2, channels=6, inner=8, attention=4, published_input=published)).eval()
    image = picture(2, 3, 31, 22)
    with torch.no_grad():
        expected = rlfn_by_hand(generator.state_dict(), 2, image, published)
        torch.testing.assert_close(generator(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (14, 40), (40, 3)])
def test_rlfn_repeats_the_border_of_pictures_smaller_than_its_attention(size: tuple[int, int]) -> None:
    generator = made(RLFNSpec(blocks=1, channels=4, attention=2)).eval()
    image = picture(1, 3, *size)
    height, width = size
    whole = F.pad(image, (0, max(15 - width, 0), 0, max(15 - height, 0)), mode="replicate")
    with torch.no_grad():
        expected = generator(whole)[..., : 4 * height, : 4 * width]
        torch.testing.assert_close(generator(image), expected)


@pytest.mark.parametrize("published", [True, False])
def test_the_range_of_an_rlfn_file_is_found(tmp_path: Path, published: bool) -> None:
    """The file does not tell: a network trained a little on one range enlarges gray pictures rightly on that."""
    torch.manual_seed(0)
    network = NetworkSpec(scale=4, generator=RLFNSpec(blocks=1, channels=8, attention=4, published_input=published))
    generator = build_generator(network)
    optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
    for step in range(60):
        shades = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(step)).expand(8, 3, 16, 16)
        loss = (generator(shades) - shades.repeat_interleave(4, 2).repeat_interleave(4, 3)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(generator.state_dict(), tmp_path / "rlfn.pth")
    assert load_generator(tmp_path / "rlfn.pth")[1] == network


def test_the_public_rlfn_file_gives_what_its_peer_gives() -> None:
    folder = shared_folder("data/peers")
    loaded, network = load_generator(folder / "rlfn_ntire_x4.pth")
    spec = RLFNSpec(blocks=4, channels=46, inner=48, attention=16, published_input=True)
    assert network == NetworkSpec(scale=4, generator=spec)
    found = importlib.util.spec_from_file_location("peer_networks", folder / "networks.py")
    assert found is not None
    assert found.loader is not None
    peers = importlib.util.module_from_spec(found)
    found.loader.exec_module(peers)
    image = picture(1, 3, 41, 30)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), peers.load("rlfn-ntire", 4)(image), rtol=1e-5, atol=1e-5)
