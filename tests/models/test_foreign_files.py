"""`ray-sr models import` on files of other programs, from the command to the first upscaled pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, MSRResNetSpec, NetworkSpec, RRDBNetSpec
from ray_sr.store import load_model
from tests.models.test_damaged_weights import Bomb
from tests.models.test_weights import (
    MSR_NAMES,
    RRDB_NAMES,
    RRDB_PARTS,
    conv,
    msrresnet_by_hand,
    prefixed,
    rrdb_by_hand,
)
from tests.models.weight_files import photo, random_state
from tests.test_cli import run

State = dict[str, Tensor]


def rrdb_state(naming: str, inputs: int = 3) -> tuple[State, dict[str, str]]:
    """Two blocks of 8 channels and growth 4 under the names of `naming`, and these names by part."""
    names = dict(zip(RRDB_PARTS, RRDB_NAMES[naming].split(), strict=True))
    shapes = {names[part]: (8, 8) for part in ("trunk", "up1", "up2", "hr")}
    shapes |= {names["first"]: (8, inputs), names["last"]: (3, 8)}
    for dense in (names["dense"].format(block, i) for block in range(2) for i in (1, 2, 3)):
        shapes |= {names["conv"].format(dense, i): (4 if i < 5 else 8, 4 + 4 * i) for i in range(1, 6)}
    return random_state(shapes), names


def rrdb(naming: str) -> tuple[State, Callable[[Tensor], Tensor]]:
    state, names = rrdb_state(naming)
    return state, lambda x: rrdb_by_hand(state, names, x)


def rrdb_x2() -> tuple[State, Callable[[Tensor], Tensor]]:
    """Real-ESRGAN's x2plus: 2x2 pixels become channels, then everything is enlarged by 4."""
    state, names = rrdb_state("basicsr", inputs=12)
    return state, lambda x: rrdb_by_hand(state, names, F.pixel_unshuffle(x, 2))


def msrresnet(naming: str) -> tuple[State, Callable[[Tensor], Tensor]]:
    body, ups, hr = MSR_NAMES[naming]
    shapes = {"conv_first": (6, 3), hr: (6, 6), "conv_last": (3, 6), **dict.fromkeys(ups, (24, 6))}
    state = random_state(shapes | {f"{body}.{block}.conv{i}": (6, 6) for block in range(2) for i in (1, 2)})
    return state, lambda x: msrresnet_by_hand(state, body, ups, hr, x)


def compact(activation: str = "prelu") -> tuple[State, Callable[[Tensor], Tensor]]:
    """SRVGGNetCompact x2 with two convolutions in the body: every even place is a convolution."""
    state = random_state({"body.0": (5, 3), "body.2": (5, 5), "body.4": (5, 5), "body.6": (12, 5)})
    if activation == "prelu":
        slopes = torch.rand(3, 5, generator=torch.Generator().manual_seed(5))
        state |= {f"body.{place}.weight": slope for place, slope in zip((1, 3, 5), slopes, strict=True)}

    def act(place: int, y: Tensor) -> Tensor:
        slope = state[f"body.{place}.weight"] if activation == "prelu" else torch.full((5,), 0.1)
        return F.prelu(y, slope)

    def forward(x: Tensor) -> Tensor:
        y = x
        for place in (0, 2, 4):
            y = act(place + 1, conv(state, f"body.{place}", y))
        return F.pixel_shuffle(conv(state, "body.6", y), 2) + F.interpolate(x, scale_factor=2, mode="nearest")

    return state, forward


def other(state: State) -> State:
    return {key: tensor + 1 for key, tensor in state.items()}


RRDB = RRDBNetSpec(blocks=2, channels=8, growth=4)
MSR = MSRResNetSpec(blocks=2, channels=6)
LAYOUTS: dict[str, tuple[NetworkSpec, Any, Callable[[State], object]]] = {
    "BasicSR MSRResNet, params": (NetworkSpec(generator=MSR), msrresnet("basicsr"), lambda s: {"params": s}),
    "BasicSR of several GPUs": (
        NetworkSpec(generator=MSR),
        msrresnet("basicsr"),
        lambda s: {"params": prefixed("module.", s)},
    ),
    "Real-ESRGAN x4plus, params_ema": (
        NetworkSpec(generator=RRDB),
        rrdb("basicsr"),
        lambda s: {"params": other(s), "params_ema": s},
    ),
    "Real-ESRGAN x2plus, params_ema": (
        NetworkSpec(scale=2, generator=RRDB),
        rrdb_x2(),
        lambda s: {"params_ema": s},
    ),
    "Real-ESRGAN compact, params": (
        NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=5)),
        compact(),
        lambda s: {"params": s},
    ),
    "ESRGAN, its first names": (NetworkSpec(generator=RRDB), rrdb("old esrgan"), lambda s: s),
    "ESRGAN, its second names": (NetworkSpec(generator=RRDB), rrdb("esrgan"), lambda s: s),
    "MMSR": (NetworkSpec(generator=MSR), msrresnet("mmsr"), lambda s: s),
    "MMagic MSRResNet": (
        NetworkSpec(generator=MSR),
        msrresnet("mmagic"),
        lambda s: {"meta": {"epoch": 1}, "state_dict": prefixed("generator.", s)},
    ),
    "MMagic ESRGAN with its discriminator": (
        NetworkSpec(generator=RRDB),
        rrdb("basicsr"),
        lambda s: {
            "state_dict": {
                **prefixed("generator.", other(s)),
                **prefixed("generator_ema.module.", s),
                "generator_ema.steps": torch.tensor(7),
                "discriminator.conv0.weight": torch.ones(4, 3, 3, 3),
            }
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_imported_with_its_values(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, (state, by_hand), contain = LAYOUTS[layout]
    file, store = tmp_path / "generator.pth", str(tmp_path / "store")
    torch.save(contain(state), file)
    code, out, err = run(
        "models", "import", str(file), "--name", "theirs", "--store", store, "--json", capsys=capsys
    )
    assert code == 0, err
    result = json.loads(out)
    assert NetworkSpec.model_validate(result["network"]) == network
    model = load_model(result["model"], store)
    image = photo(8, 12)
    with torch.inference_mode():
        assert torch.allclose(model.module(image), by_hand(image), atol=1e-6)
    assert model.card["provenance"]["source"] == str(file)


def test_the_same_through_a_whole_upscaled_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, by_hand = compact()
    torch.save({"params_ema": state}, tmp_path / "small.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    store = str(tmp_path / "store")
    run("models", "import", str(tmp_path / "small.pth"), "--promote", "best", "--store", store, capsys=capsys)
    code, _, err = run(
        "upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--store", store, capsys=capsys
    )
    assert code == 0, err
    batch = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None]
    expected = by_hand(batch)[0].permute(1, 2, 0).clamp(0, 1).mul(255).numpy()
    with Image.open(tmp_path / "out.png") as upscaled:
        assert np.abs(np.asarray(upscaled) - expected).max() <= 1.0


# ----------------------------------------------------------------------- what the weights do not tell


def test_an_activation_without_weights_is_asked_for_and_taken_from_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, by_hand = compact("leakyrelu")
    file, store = str(tmp_path / "leaky.pth"), str(tmp_path / "store")
    torch.save({"params": state}, file)
    code, _, err = run("models", "import", file, "--store", store, capsys=capsys)
    assert code == 5
    assert "activation" in err
    assert "name the network" in err
    sizes = ("scale=2", "generator.convs=2", "generator.channels=5", "generator.activation=leakyrelu")
    code, out, err = run(
        "models", "import", file, *sizes, "-c", "compact-x4", "--store", store, "--json", capsys=capsys
    )
    assert code == 0, err
    with torch.inference_mode():
        found = load_model(json.loads(out)["model"], store).module(photo(8, 12))
    assert torch.allclose(found, by_hand(photo(8, 12)), atol=1e-6)


def test_a_recipes_network_is_met_by_foreign_names_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values in [-1, 1] inside cannot be seen in the weights; the old names are still turned into ours."""
    state, by_hand = rrdb("old esrgan")
    file, store = str(tmp_path / "old.pth"), str(tmp_path / "store")
    torch.save(state, file)
    changes = ("generator.blocks=2", "generator.channels=8", "generator.growth=4", "value_range=signed")
    code, out, err = run(
        "models", "import", file, *changes, "-c", "esrgan-x4", "--store", store, "--json", capsys=capsys
    )
    assert code == 0, err
    with torch.inference_mode():
        found = load_model(json.loads(out)["model"], store).module(photo(8, 12))
    assert torch.allclose(found, (by_hand(photo(8, 12) * 2 - 1) + 1) / 2, atol=1e-6)


def test_overrides_without_a_recipe_are_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("models", "import", "any.pth", "generator.activation=relu", capsys=capsys)
    assert code == 2
    assert "-c RECIPE" in err


# --------------------------------------------------------------------------------------------- refusal


def refused(file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of an import that ends with exit code 5 and leaves an empty store."""
    store = file.parent / "store"
    code, out, err = run("models", "import", str(file), *options, "--store", str(store), capsys=capsys)
    assert code == 5, err
    assert out == ""
    assert err.startswith(f"error: {file}: ")
    assert len(err.splitlines()) == 1
    assert not list(store.rglob("*.safetensors"))
    return err


def test_weights_of_another_network_name_the_first_differing_keys_and_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"params": msrresnet("basicsr")[0]}, tmp_path / "net.pth")
    err = refused(tmp_path / "net.pth", capsys, "generator.blocks=3", "-c", "msrresnet-x4")
    assert "these weights belong to another network" in err
    assert "conv_first.weight is 6x3x3x3 in the file and 64x3x3x3 in the network" in err
    assert "more" in err


def test_a_truncated_state_dict_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = rrdb("basicsr")[0]
    del state["conv_hr.bias"], state["body.1.rdb2.conv3.weight"]
    torch.save({"params_ema": state}, tmp_path / "net.pth")
    err = refused(tmp_path / "net.pth", capsys)
    assert "body.1.rdb2.conv3.weight 4x16x3x3 is missing; conv_hr.bias 8 is missing" in err


def test_an_unknown_architecture_is_named_by_its_first_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"stem.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "net.pth")
    err = refused(tmp_path / "net.pth", capsys)
    assert "neither ray-sr nor spandrel knows this network of stem.weight" in err


def kair(upsampling: int) -> State:
    """An RRDBNet of KAIR's naming: `upsampling` steps of 2, of which BasicSR always has two; growth 32."""
    shapes = {"conv_first": (8, 3), "trunk_conv": (8, 8), "HRconv": (8, 8), "conv_last": (3, 8)}
    for dense in ("RDB1", "RDB2", "RDB3"):
        for i in range(1, 6):
            shapes[f"RRDB_trunk.0.{dense}.conv{i}"] = (32 if i < 5 else 8, 8 + 32 * (i - 1))
    return random_state(shapes | {f"upconv{i + 1}": (8, 8) for i in range(upsampling)})


@pytest.mark.parametrize("suffix", [".pth", ".PTH", ".Safetensors"])
def test_a_layout_that_spandrel_alone_knows_is_imported_as_it_is_upscaled(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BSRGAN x2 of KAIR has one step of upsampling where our own reader expects two."""
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    file, store = tmp_path / f"bsrgan_x2{suffix}", str(tmp_path / "store")
    if suffix.lower() == ".safetensors":
        save_file(kair(1), file)
    else:
        torch.save(kair(1), file)
    code, out, err = run("models", "import", str(file), "--store", store, "--json", capsys=capsys)
    assert code == 0, err
    result = json.loads(out)
    assert result["network"]["scale"] == 2
    assert result["network"]["generator"]["architecture"] == "ESRGAN"
    published, direct = load_model(result["model"], store), load_model(str(file))
    assert published.network == direct.network
    with torch.inference_mode():
        assert torch.equal(published.module(photo(8, 12)), direct.module(photo(8, 12)))
    assert published.module(photo(9, 7)).shape[-2:] == (18, 14)


@pytest.mark.parametrize(
    ("stem", "close"),
    [
        ("4x Ultra Sharp", "4x-Ultra-Sharp"),
        ("bicubic", "my-bicubic"),
        ("x4.ckpt", "my-x4-ckpt"),
        ("модель", "NAME"),
    ],
)
def test_a_name_that_cannot_be_one_of_a_model_asks_for_another(
    stem: str, close: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{stem}.pth"
    torch.save({"params": compact()[0]}, file)
    code, _, err = run("models", "import", str(file), "--store", str(tmp_path / "store"), capsys=capsys)
    assert code == 2
    assert f"{stem!r} cannot name a model" in err
    assert f"--name {close}" in err


CONTAINERS: dict[str, Callable[[State], Any]] = {
    "a name of its own beside numbers": lambda s: {"weights_of_mine": s, "epoch": 3, "step": torch.tensor(7)},
    "upper case": lambda s: {"PARAMS-EMA": s, "iter": 1},
    "averaged before the others": lambda s: {"g": {k: v * 0 for k, v in s.items()}, "g_ema": s},
    "a GAN's training": lambda s: {
        "netG": s,
        "netD": {"conv0.weight": torch.ones(4, 3, 3, 3)},
        "optim_g": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
    },
    "beside what is no generator": lambda s: {
        "modelG": s,
        "modelD": {"conv0.weight": torch.ones(4, 3, 3, 3)},
        "vgg": {"features.0.weight": torch.ones(4, 3, 3, 3)},
        "teacher": other(s),
    },
    "in one another": lambda s: {"checkpoint": {"generator": {"state_dict": s}}},
    "Lightning, with its loss": lambda s: {
        "state_dict": {**prefixed("net_g.", s), "loss.vgg.0.weight": torch.ones(4, 3, 3, 3)},
        "epoch": 1,
    },
    "one name before all keys": lambda s: prefixed("network.module.", s),
    "averaged under its own name": lambda s: {**prefixed("model.", other(s)), **prefixed("ema_model.", s)},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_of_other_trainers_are_opened(kind: str, tmp_path: Path) -> None:
    state = compact()[0]
    torch.save(CONTAINERS[kind](state), tmp_path / "net.pth")
    found = load_model(str(tmp_path / "net.pth")).module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_of_two_generators_none_is_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"one": compact()[0], "two": compact()[0]}, tmp_path / "net.pth")
    assert "which of one, two is the generator is not known" in refused(tmp_path / "net.pth", capsys)


def test_what_only_spandrel_knows_may_have_a_name_before_its_keys(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    torch.save({"state_dict": prefixed("net_g.", kair(1)), "epoch": 1}, tmp_path / "net.ckpt")
    assert load_model(str(tmp_path / "net.ckpt")).capability.scale == 2


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_first_names_of_esrgan_are_imported_at_every_scale(
    scale: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    steps = scale.bit_length() - 1
    last = 3 * steps + 2
    shapes = {"model.0": (8, 3), "model.1.sub.1": (8, 8), f"model.{last}": (8, 8), f"model.{last + 2}": (3, 8)}
    shapes |= {f"model.{3 * step + 3}": (8, 8) for step in range(steps)}
    for dense in ("RDB1", "RDB2", "RDB3"):
        for i in range(1, 6):
            shapes[f"model.1.sub.0.{dense}.conv{i}.0"] = (32 if i < 5 else 8, 8 + 32 * (i - 1))
    file, store = tmp_path / "old.pth", str(tmp_path / "store")
    torch.save(random_state(shapes), file)
    code, _, err = run("models", "import", str(file), "--store", store, capsys=capsys)
    assert code == 0, err
    published, direct = load_model("old", store), load_model(str(file))
    assert published.capability.scale == scale
    with torch.inference_mode():
        assert torch.equal(published.module(photo(9, 11)), direct.module(photo(9, 11)))


def test_a_file_of_weights_may_have_any_name(tmp_path: Path) -> None:
    torch.save(compact()[0], tmp_path / "pytorch_model.bin")
    assert load_model(str(tmp_path / "pytorch_model.bin")).capability.scale == 2


@pytest.mark.parametrize("checksums", [True, False])
def test_damage_that_torch_does_not_see_is_named(
    checksums: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch opens an archive without comparing its checksums; they may be left out, which is no damage."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(compact()[0], tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert (tmp_path / "net.pth").is_file()
    data = bytearray((tmp_path / "net.pth").read_bytes())
    place = data.find(compact()[0]["body.0.weight"].numpy().tobytes())
    assert place > 0
    assert load_model(str(tmp_path / "net.pth")).capability.scale == 2
    data[place + 1] ^= 1
    (tmp_path / "net.pth").write_bytes(data)
    torch.load(tmp_path / "net.pth", weights_only=True)
    if checksums:
        assert "data/0 in it is damaged" in refused(tmp_path / "net.pth", capsys)


@pytest.mark.parametrize("suffix", [".SafeTensors", ".ONNX"])
def test_exports_are_named_in_any_case(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if suffix == ".ONNX":
        pytest.importorskip("onnxscript", reason="needs onnx: pip install ray-sr[onnx]")
    torch.save(compact()[0], tmp_path / "net.pth")
    file = tmp_path / f"net{suffix}"
    code, _, err = run("models", "export", str(tmp_path / "net.pth"), "-o", str(file), capsys=capsys)
    assert code == 0, err
    assert file.stat().st_size > 100


def test_a_discriminator_is_no_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"params": random_state({"conv0_0": (8, 3), "conv0_1": (8, 8)})}, tmp_path / "net_d.pth")
    assert "conv0_0.weight" in refused(tmp_path / "net_d.pth", capsys)


@pytest.mark.parametrize("kind", ["cut", "changed", "empty", "web page"])
def test_a_corrupt_file_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.pth"
    torch.save({"params": compact()[0]}, file)
    whole = file.read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2],
        "changed": whole[:40] + bytes(60) + whole[100:],
        "empty": b"",
        "web page": b"<!DOCTYPE html><title>404</title>",
    }
    file.write_bytes(contents[kind])
    refused(file, capsys)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_malicious_file_is_refused_before_it_runs(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, file = tmp_path / "it ran", tmp_path / f"net{suffix}"
    torch.save({"params": compact()[0], "optimizer": Bomb(marker)}, file)
    err = refused(file, capsys)
    assert "refused and not run" in err
    assert f"{os.name}.system" in err
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the same file, trusted: it does run
    assert marker.exists()


def test_our_own_file_is_imported_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray_sr.models.weights import save_weights

    network = NetworkSpec(
        scale=3, value_range="signed", generator=CompactSpec(convs=1, channels=4, activation="relu")
    )
    save_weights(tmp_path / "ours.safetensors", build_generator(network), network)
    code, out, _ = run(
        "models",
        "import",
        str(tmp_path / "ours.safetensors"),
        "--store",
        str(tmp_path / "s"),
        "--json",
        capsys=capsys,
    )
    assert code == 0
    assert NetworkSpec.model_validate(json.loads(out)["network"]) == network
