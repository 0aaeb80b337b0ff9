"""Weight files that are hostile, damaged, or something else: refused in one line, and nothing of them is run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ray_sr.errors import InputError, ModelError
from ray_sr.models.weights import load_generator, save_weights
from tests.models.weight_files import COMPACT, MSR, made, network, random_state


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "protocol 4", "named as safetensors"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "it ran"
    content = {"params": {"conv_first.weight": torch.zeros(8, 3, 3, 3)}, "extra": Bomb(marker)}
    path = tmp_path / ("net.safetensors" if kind == "named as safetensors" else "net.pth")
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        protocol = 4 if kind == "protocol 4" else 2
        path.write_bytes(pickle.dumps({"extra": Bomb(marker)}, protocol=protocol))
    with pytest.raises(ModelError) as refusal:
        load_generator(path)
    assert not marker.exists()
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    if kind in ("zip", "legacy", "pickle"):
        assert "posix.system" in str(refusal.value)


def refusal_of(path: Path) -> str:
    try:
        load_generator(path)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    """Cut at many places and with bytes changed: a ModelError, or (changed weights) a network that loads."""
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save({"params": made(network(COMPACT)).state_dict()}, path)
    else:
        save_weights(path, made(network(COMPACT)), network(COMPACT))
    whole = path.read_bytes()
    draw = random.Random(1)
    for length in [0, 1, 7, 8, 9, *(draw.randrange(10, len(whole)) for _ in range(25)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError) as refusal:
            load_generator(path)
        assert "\n" not in str(refusal.value)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(draw.randrange(1, 30)):
            broken[draw.randrange(len(whole) if draw.random() < 0.5 else 600)] = draw.randrange(256)
        path.write_bytes(broken)
        assert "\n" not in refusal_of(path)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "inside")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"\r\n\n", "it is empty"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
        (gzip.compress(b"weights"), "it is packed by gzip: unpack it"),
        (zipped("4x.pth"), r"it is a zip archive of 4x\.pth: unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "it is HDF5"),
        (b"PK\x03\x04" + b"\0" * 90, "not a readable"),
        (b"neither", "not a readable"),
    ],
)
def test_other_files_are_refused_as_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"net{suffix}").write_bytes(content)
        with pytest.raises(ModelError, match=what) as refusal:
            load_generator(tmp_path / f"net{suffix}")
        assert "\n" not in str(refusal.value)


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    state = made(network(COMPACT)).state_dict()
    torch.save(state, tmp_path / "torch.safetensors")
    save_file(state, tmp_path / "safe.pth")
    for name in ("torch.safetensors", "safe.pth"):
        found = load_generator(tmp_path / name)[0].state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda tensor: tensor.to("meta"), "has a shape and no values"),
        (lambda tensor: (tensor * 100).to(torch.int8), "is torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "is torch.complex64"),
        (lambda tensor: tensor * float("nan"), "not finite"),
        (lambda tensor: tensor * float("inf"), "not finite"),
    ],
)
def test_foreign_weights_that_no_network_computes_with_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], what: str
) -> None:
    """Also where spandrel would take them."""
    torch.save({k: change(t) for k, t in made(network(COMPACT)).state_dict().items()}, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=what):
        load_generator(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"params": {}}, {"epoch": 3}, torch.zeros(3)])
def test_files_without_weights_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="no weights in it"):
        load_generator(tmp_path / "net.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such weights file"):
        load_generator(tmp_path / "none.pth")


def test_a_forged_size_allocates_nothing(tmp_path: Path) -> None:
    """A few kilobytes that claim an RRDBNet of tens of gigabytes."""
    state = random_state({"conv_first": (1024, 3), "body.0.rdb1.conv1": (256, 2)})
    state["body.127.rdb1.conv1.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="another network"):
        load_generator(tmp_path / "net.pth")


def test_sizes_out_of_range_are_refused(tmp_path: Path) -> None:
    state = made(network(MSR)).state_dict()
    state["body.999999999999.conv1.bias"] = torch.zeros(8)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="blocks"):
        load_generator(tmp_path / "net.pth")


def test_gray_networks_are_named_as_such(tmp_path: Path) -> None:
    torch.save(random_state({"conv_first": (8, 1), "body.0.conv1": (8, 8)}), tmp_path / "net.pth")
    with pytest.raises(ModelError, match="1 input channels, not RGB"):
        load_generator(tmp_path / "net.pth")
