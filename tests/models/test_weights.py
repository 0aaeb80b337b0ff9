"""Weight files: our own, every foreign layout, strict loading, and files for and of other programs."""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ray_sr.errors import ModelError, ResourceError
from ray_sr.models.export import foreign_use
from ray_sr.models.foreign import from_python_file
from ray_sr.models.weights import load_generator, load_strict, save_weights
from ray_sr.recipes.networks import (
    CompactSpec,
    DeblurGANSpec,
    GeneratorSpec,
    MSRResNetSpec,
    NetworkSpec,
    RRDBNetSpec,
    SpandrelSpec,
    SRResNetSpec,
)
from tests.models.weight_files import COMPACT, MSR, RRDB, made, network, photo, random_state, same_output

# --------------------------------------------------------------------------------------------- ours


@pytest.mark.parametrize(
    "spec",
    [
        network(RRDB, 2),
        network(MSR, 8, "signed"),
        network(CompactSpec(convs=1, channels=4, activation="relu"), 3),
        network(SRResNetSpec(blocks=1, channels=4), 2),
        network(DeblurGANSpec(blocks=1, channels=4, norm="batch"), 1, "signed"),
    ],
    ids=lambda spec: spec.generator.kind,
)
def test_our_file_says_its_network(tmp_path: Path, spec: NetworkSpec) -> None:
    module = made(spec)
    save_weights(tmp_path / "net.safetensors", module, spec, {"note": "ü"})
    loaded, found = load_generator(tmp_path / "net.safetensors")
    assert found == spec
    assert not loaded.training
    assert same_output(module, loaded)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for name, module in (("a", made(network(RRDB))), ("b", made(network(RRDB)))):
        save_weights(tmp_path / f"{name}.safetensors", module, network(RRDB), {"x": 1, "y": 2})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    save_weights(tmp_path / "net.safetensors", made(network(RRDB)), network(RRDB))
    before = torch.get_rng_state()
    load_generator(tmp_path / "net.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_header_of_another_time_is_told_apart_from_damage(tmp_path: Path) -> None:

    header = {"ray_sr": '{"network": {"scale": 4, "generator": {"kind": "swin"}}, "metadata": {}}'}
    save_file(made(network(MSR)).state_dict(), tmp_path / "net.safetensors", header)
    with pytest.raises(ModelError, match=r"names no network that this ray-sr builds.*swin"):
        load_generator(tmp_path / "net.safetensors")


def test_unwritable_target_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        save_weights(tmp_path / "file" / "net.safetensors", made(network(MSR)), network(MSR))


def test_tied_weights_are_written_whole(tmp_path: Path) -> None:
    module = made(network(MSR))
    module.get_submodule("body.1").conv1 = module.get_submodule("body.0").conv1
    save_weights(tmp_path / "net.safetensors", module, network(MSR))
    assert same_output(module, load_generator(tmp_path / "net.safetensors")[0])


# ------------------------------------------------------------------------------- containers, prefixes


def other_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor + 1 for key, tensor in state.items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


CONTAINERS = {
    "bare": lambda state: collections.OrderedDict(state),
    "params": lambda state: {"params": state},
    "params_ema goes first": lambda state: {"params": other_values(state), "params_ema": state},
    "params-ema goes before params": lambda state: {"params": other_values(state), "params-ema": state},
    "net": lambda state: {"net": state, "epoch": 3},
    "a single name of its own": lambda state: {"my generator": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "meta": {"seed": 1}},
    "mmagic": lambda state: {
        "meta": {},
        "state_dict": {
            **prefixed("generator.", state),
            **prefixed("discriminator.", {"conv.weight": torch.ones(1, 3, 3, 3)}),
            "step_counter": torch.tensor(5),
        },
    },
    "mmagic averaged": lambda state: {
        "state_dict": {
            **prefixed("generator.", other_values(state)),
            **prefixed("generator_ema.module.", state),
            "generator_ema.steps": torch.tensor(9),
        }
    },
    "parallel": lambda state: {"params": prefixed("module.", state)},
    "parallel and compiled": lambda state: prefixed("module._orig_mod.", state),
    "averaged by torch": lambda state: {"n_averaged": torch.tensor(4), **prefixed("module.", state)},
    "half precision": lambda state: {key: tensor.half() for key, tensor in state.items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("generator", [RRDB, MSR, COMPACT], ids=lambda spec: spec.kind)
def test_containers_and_prefixes(tmp_path: Path, container: str, generator: GeneratorSpec) -> None:
    module = made(network(generator))
    if container == "half precision":
        module = module.half().float()
    torch.save(CONTAINERS[container](module.state_dict()), tmp_path / "net.pth")
    loaded, found = load_generator(tmp_path / "net.pth")
    assert found == network(generator)
    assert next(loaded.parameters()).dtype == torch.float32
    assert same_output(module, loaded)


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_of_torch(tmp_path: Path, legacy: bool) -> None:
    module = made(network(COMPACT))
    torch.save(module.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    assert same_output(module, load_generator(tmp_path / "net.pth")[0])


def test_foreign_safetensors_without_our_header(tmp_path: Path) -> None:

    module = made(network(MSR, 3))
    save_file(prefixed("module.", module.state_dict()), tmp_path / "net.safetensors")
    loaded, found = load_generator(tmp_path / "net.safetensors")
    assert found == network(MSR, 3)
    assert same_output(module, loaded)


# --------------------------------------------------------------------------------- sizes from shapes


@pytest.mark.parametrize(
    "spec",
    [
        network(RRDBNetSpec(blocks=11, channels=12, growth=6), 4),
        network(RRDBNetSpec(blocks=1, channels=4, growth=8), 2),
        network(RRDBNetSpec(blocks=1, channels=4, growth=4), 1),
        *(network(MSRResNetSpec(blocks=12, channels=6), scale) for scale in (2, 3, 4, 8)),
        *(network(MSRResNetSpec(blocks=2, channels=6, upsampling="direct"), scale) for scale in (2, 3, 4, 8)),
        *(network(CompactSpec(convs=11, channels=5), scale) for scale in (1, 2, 3, 4, 8)),
    ],
    ids=lambda spec: f"{spec.generator.kind}-x{spec.scale}{getattr(spec.generator, 'upsampling', '')}",
)
def test_network_is_inferred(tmp_path: Path, spec: NetworkSpec) -> None:
    torch.save({"params": made(spec).state_dict()}, tmp_path / "net.pth")
    assert load_generator(tmp_path / "net.pth")[1] == spec


def test_a_given_network_settles_what_the_file_leaves_open(tmp_path: Path) -> None:
    spec = network(CompactSpec(convs=2, channels=4, activation="leakyrelu"))
    module = made(spec)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ModelError, match="activation"):
        load_generator(tmp_path / "net.pth")
    assert same_output(module, load_generator(tmp_path / "net.pth", spec)[0])


# ------------------------------------------------------------------------------------ other namings


def conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)


def msrresnet_by_hand(state: dict[str, Tensor], body: str, ups: list[str], hr: str, x: Tensor) -> Tensor:
    def act(y: Tensor) -> Tensor:
        return F.leaky_relu(y, 0.1)

    features = act(conv(state, "conv_first", x))
    for block in range(2):
        inner = F.relu(conv(state, f"{body}.{block}.conv1", features))
        features = features + conv(state, f"{body}.{block}.conv2", inner)
    for up in ups:
        features = act(F.pixel_shuffle(conv(state, up, features), 2))
    base = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    return conv(state, "conv_last", act(conv(state, hr, features))) + base


MSR_NAMES = {
    "basicsr": ("body", ["upconv1", "upconv2"], "conv_hr"),
    "mmagic": ("trunk_net", ["upsample1.upsample_conv", "upsample2.upsample_conv"], "conv_hr"),
    "mmsr": ("recon_trunk", ["upconv1", "upconv2"], "HRconv"),
}


@pytest.mark.parametrize("naming", MSR_NAMES)
def test_msrresnet_namings(tmp_path: Path, naming: str) -> None:
    body, ups, hr = MSR_NAMES[naming]
    shapes = {"conv_first": (6, 3), hr: (6, 6), "conv_last": (3, 6), **dict.fromkeys(ups, (24, 6))}
    shapes |= {f"{body}.{block}.conv{i}": (6, 6) for block in range(2) for i in (1, 2)}
    state = random_state(shapes)
    torch.save({"state_dict": prefixed("generator.", state)}, tmp_path / "net.pth")
    loaded, found = load_generator(tmp_path / "net.pth")
    assert found == network(MSRResNetSpec(blocks=2, channels=6))
    with torch.inference_mode():
        expected = msrresnet_by_hand(state, body, ups, hr, photo())
        assert torch.allclose(loaded(photo()), expected, atol=1e-6)


def rrdb_by_hand(state: dict[str, Tensor], names: dict[str, str], x: Tensor) -> Tensor:
    """ESRGAN's generator with the naming's words for the parts of the network."""

    def act(y: Tensor) -> Tensor:
        return F.leaky_relu(y, 0.2)

    def dense(name: str, y: Tensor) -> Tensor:
        seen = [y]
        for i in range(1, 5):
            seen.append(act(conv(state, names["conv"].format(name, i), torch.cat(seen, 1))))
        return y + 0.2 * conv(state, names["conv"].format(name, 5), torch.cat(seen, 1))

    first = features = conv(state, names["first"], x)
    for block in range(2):
        inner = features
        for i in (1, 2, 3):
            inner = dense(names["dense"].format(block, i), inner)
        features = features + 0.2 * inner
    features = first + conv(state, names["trunk"], features)
    for up in (names["up1"], names["up2"]):
        features = act(conv(state, up, F.interpolate(features, scale_factor=2, mode="nearest")))
    return conv(state, names["last"], act(conv(state, names["hr"], features)))


RRDB_PARTS = ("first", "dense", "conv", "trunk", "up1", "up2", "hr", "last")
RRDB_NAMES = {
    "basicsr": "conv_first body.{}.rdb{} {}.conv{} conv_body conv_up1 conv_up2 conv_hr conv_last",
    "esrgan": "conv_first RRDB_trunk.{}.RDB{} {}.conv{} trunk_conv upconv1 upconv2 HRconv conv_last",
    "old esrgan": "model.0 model.1.sub.{}.RDB{} {}.conv{}.0 model.1.sub.2 model.3 model.6 model.8 model.10",
}


@pytest.mark.parametrize("naming", RRDB_NAMES)
def test_rrdbnet_namings(tmp_path: Path, naming: str) -> None:
    names = dict(zip(RRDB_PARTS, RRDB_NAMES[naming].split(), strict=True))
    shapes = {names[part]: (8, 8) for part in ("trunk", "up1", "up2", "hr")}
    shapes |= {names["first"]: (8, 3), names["last"]: (3, 8)}
    for dense in (names["dense"].format(block, i) for block in range(2) for i in (1, 2, 3)):
        shapes |= {names["conv"].format(dense, i): (4 if i < 5 else 8, 4 + 4 * i) for i in range(1, 6)}
    state = random_state(shapes)
    torch.save(state, tmp_path / "net.pth")
    loaded, found = load_generator(tmp_path / "net.pth")
    assert found == network(RRDB)
    with torch.inference_mode():
        assert torch.allclose(loaded(photo()), rrdb_by_hand(state, names, photo()), atol=1e-6)


# -------------------------------------------------------------------------------------- strict loading


def test_the_first_differences_are_named() -> None:
    module = made(network(MSR))
    state = made(network(MSRResNetSpec(blocks=1, channels=16))).state_dict()
    state["odd.weight"] = torch.zeros(2)
    with pytest.raises(ModelError) as refusal:
        load_strict(module, state, "best.pth")
    text = str(refusal.value)
    assert text.startswith("best.pth: ")
    assert "conv_first.weight is 16x3x3x3 in the file and 8x3x3x3 in the network" in text
    assert "more" in text
    assert "\n" not in text


def test_missing_and_unexpected_keys_are_named() -> None:
    module = made(network(MSR))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    state = {key: tensor + 1 for key, tensor in before.items() if key != "conv_hr.bias"} | {"odd": torch.zeros(2)}
    with pytest.raises(ModelError, match=r"conv_hr\.bias 8 is missing; odd 2 is unexpected$"):
        load_strict(module, state, "file")
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    module = made(network(COMPACT))
    with torch.no_grad():
        module.state_dict()["body.2.weight"][0, 0, 0, 0] = value
    save_weights(tmp_path / "net.safetensors", module, network(COMPACT))
    with pytest.raises(ModelError, match=r"body\.2\.weight"):
        load_generator(tmp_path / "net.safetensors")


def test_whole_numbers_are_no_weights() -> None:
    module = made(network(COMPACT))
    state = {key: tensor.to(torch.int8) for key, tensor in module.state_dict().items()}
    with pytest.raises(ModelError, match="int8"):
        load_strict(module, state, "file")


# ------------------------------------------------------------------------------------------ spandrel


def spandrel_small() -> torch.nn.Module:
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    from spandrel.architectures.SAFMN import SAFMN

    torch.manual_seed(0)
    return SAFMN(dim=8, n_blocks=1, upscaling_factor=2).eval()


def test_other_architectures_come_through_spandrel(tmp_path: Path) -> None:
    reference = spandrel_small()
    torch.save({"params": reference.state_dict()}, tmp_path / "net.pth")
    loaded, found = load_generator(tmp_path / "net.pth")
    spec = SpandrelSpec(architecture="SAFMN", options={"dim": 8, "n_blocks": 1})
    assert found == NetworkSpec(scale=2, generator=spec)
    assert (loaded.capability.scale, loaded.capability.channels) == (2, 3)
    with torch.inference_mode():
        image = torch.rand(1, 3, 16, 24)
        assert torch.allclose(loaded(image), reference(image), atol=1e-6)
    assert loaded(torch.rand(1, 3, 1, 1)).shape == (1, 3, 2, 2)
    assert next(loaded.to(torch.float64).parameters()).dtype == torch.float64


def test_without_spandrel_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"stem.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"stem\.weight 4x3x3x3; pip install 'ray-sr\[foreign\]'"):
        load_generator(tmp_path / "net.pth")


def test_what_spandrel_does_not_know_either(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    torch.save({"stem.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"neither ray-sr nor spandrel .*stem\.weight"):
        load_generator(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "spec",
    [
        network(RRDBNetSpec(blocks=2, channels=8, growth=32), 4),
        network(RRDBNetSpec(blocks=2, channels=8, growth=32), 2),
        network(COMPACT, 4),
        network(COMPACT, 1),
    ],
    ids=["rrdbnet-x4", "rrdbnet-x2", "compact-x4", "compact-x1"],
)
def test_our_files_load_in_spandrel(tmp_path: Path, spec: NetworkSpec) -> None:
    spandrel = pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
    module = made(spec)
    save_weights(tmp_path / "net.safetensors", module, spec)
    assert foreign_use(spec) is None
    descriptor = spandrel.ModelLoader(device="cpu").load_from_file(tmp_path / "net.safetensors")
    assert descriptor.scale == spec.scale
    image = photo(8, 12)
    with torch.inference_mode():
        assert torch.allclose(descriptor(image), module(image).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        network(MSR),
        network(RRDB),
        network(COMPACT, 4, "signed"),
        network(CompactSpec(activation="relu")),
    ],
)
def test_what_other_programs_would_misread_is_told(spec: NetworkSpec) -> None:
    assert foreign_use(spec)


# --------------------------------------------------------------------------------------- Python files

GOOD = """
import torch

def load(name, scale):
    if name != "repeat":
        raise KeyError(name)
    return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
"""


def test_python_file(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(GOOD)
    module = from_python_file(tmp_path / "nets.py", "repeat", 3)
    assert module.capability.scale == 3
    assert torch.equal(module(photo()), F.interpolate(photo(), scale_factor=3, mode="nearest"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "cannot be imported"),
        ("def load(: pass", "cannot be imported"),
        ("x = 1", r"no function load\(name, scale\)"),
        (GOOD.replace('repeat"', 'other"'), r"load\(\) failed: KeyError"),
        ("def load(name, scale): return 5", "gave int"),
    ],
)
def test_python_files_that_fail(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "nets.py").write_text(code)
    with pytest.raises(ModelError, match=message):
        from_python_file(tmp_path / "nets.py", "repeat", 2)


def test_python_function_of_another_scale(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def load(name, scale): return lambda x: x")
    module = from_python_file(tmp_path / "nets.py", "same", 2)
    with pytest.raises(ModelError, match="at scale 2"):
        module(photo())
