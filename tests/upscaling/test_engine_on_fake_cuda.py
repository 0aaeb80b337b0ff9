"""The engine on a GPU that is not there: every kind of network, whole and in tiles, in each precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_sr.recipes.networks import NetworkSpec
from ray_sr.upscaling import Engine
from tests.fake_cuda import Streams, Waits, describe_card, fake_tensors, kept_settings, read_as
from tests.models.networks import NETWORKS, build, name
from tests.photos import noise

CUDA = torch.device("cuda", 0)
# Of each kind of network the largest scale: the others differ in the number of channels alone.
LARGEST = list({name(network).replace(f"-x{network.scale}", ""): network for network in NETWORKS}.values())


def wider(network: NetworkSpec) -> NetworkSpec:
    """With more channels than a picture has: those of pictures stay in float32."""
    fields = {field: 8 for field in ("channels", "growth") if field in type(network.generator).model_fields}
    return network.model_copy(update={"generator": network.generator.model_copy(update=fields)})


KINDS = [wider(network) for network in LARGEST]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    describe_card(monkeypatch)
    Streams(monkeypatch)
    read_as(monkeypatch)
    with kept_settings():
        yield


def seen(network: nn.Module) -> list[tuple[torch.device, torch.dtype, str]]:
    """Where and in what the convolutions compute from now on, each by its name."""
    found: list[tuple[torch.device, torch.dtype, str]] = []
    for key, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_hook(
                lambda part, given, result, key=key: found.append((result.device, part.weight.dtype, key))
            )
    return found


@pytest.mark.parametrize(
    ("network", "kind"),
    [*((network, np.uint8) for network in KINDS), (KINDS[0], np.uint16)],
    ids=lambda value: name(value) if isinstance(value, NetworkSpec) else value.__name__,
)
def test_every_network_upscales_in_tiles(network: NetworkSpec, kind: type) -> None:
    with fake_tensors():
        generator = build(network)
        least = 2 * generator.capability.receptive_field + 8 * generator.capability.multiple
        engine = Engine(generator, generator.capability, device="cuda", tile=max(48, least), batch=2)
        ran = seen(engine._exact if kind is np.uint16 else engine._fast)
        picture = noise(40, 2 * engine.tile).astype(kind)
        result = engine.run(picture, kind)
    height, width = picture.shape[:2]
    assert result.shape == (height * network.scale, width * network.scale, 3)
    assert result.dtype == kind
    assert engine.stats.tiles > 1 or generator.capability.whole_image_norm
    assert ran
    assert {device.type for device, _, _ in ran} == {"cuda"}
    in_bfloat16 = {key for _, dtype, key in ran if dtype == torch.bfloat16}
    if kind is np.uint16 or engine.precision == "float32":
        assert not in_bfloat16
    else:
        assert in_bfloat16
        assert generator.capability.residual or ran[-1][2] not in in_bfloat16, "the last convolution is in float32"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_precision_follows_the_card(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_card(monkeypatch, capability)
    with fake_tensors():
        generator = build(KINDS[0])
        assert Engine(generator, generator.capability, device="cuda").precision == precision


def test_a_tile_makes_the_cpu_wait_for_nothing() -> None:
    with fake_tensors():
        generator = build(KINDS[0])
        engine = Engine(generator, generator.capability, device="cuda", tile=64)
        with Waits() as waits:
            engine.run(noise(100, 100), np.uint8)
    assert engine.stats.tiles > 1
    assert not waits.found


def test_the_host_never_reads_a_tile_before_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    with fake_tensors():
        generator = build(KINDS[0])
        engine = Engine(generator, generator.capability, device="cuda", tile=64)
        engine.run(noise(100, 100), np.uint8)
    steps = [line for line in streams.log if line in ("there begins", "back begins", "host waits for back")]
    sent, tiles = ["there begins", "back begins"], engine.stats.tiles
    assert steps == [*sent, *[*sent, "host waits for back"] * (tiles - 1), "host waits for back"]
