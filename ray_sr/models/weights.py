"""Weight files in and out: our self-describing .safetensors, and other programs' files read safely.

Nothing in a weights file is ever run: PyTorch files are read with `weights_only=True`, which refuses every
pickle that calls anything but the rebuilding of tensors before it is called.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ray_sr.errors import InputError, ModelError, printable
from ray_sr.models import Generator, build_generator
from ray_sr.models.foreign import find_state, our_names, recognise, recognises, with_spandrel, without_common_name
from ray_sr.recipes.networks import NetworkSpec
from ray_sr.storage import first_line, open_filesystem, read_file, write_file

HEADER = "ray_sr"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
_TORCH = (b"PK\x03\x04", b"\x80")  # a zip archive; the pickles of before
# What comes in the place of weights, by its first bytes: what it is, and what to do.
_SOMETHING_ELSE = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<": "a web page: the download gave no file",
    b"{": "JSON text",
    b"\x1f\x8b": "packed by gzip: unpack it",
    b"\xfd7zXZ\0": "packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF": "HDF5, as Keras writes weights: PyTorch's are needed",
    b"GGUF": "GGUF: weights as safetensors or by PyTorch are needed",
    b"\x08": "perhaps ONNX: weights as safetensors or by PyTorch are needed",
}


def is_weights_file(name: str) -> bool:
    """Whether the name ends as weights files do, in any case."""
    return name.lower().endswith(WEIGHT_SUFFIXES)


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds; network and metadata are set only in files that ray-sr wrote."""

    state: dict[str, Tensor]
    network: NetworkSpec | None
    metadata: dict[str, Any]


# ------------------------------------------------------------------------------------------- writing


def encode_weights(
    state: Mapping[str, Tensor], network: NetworkSpec, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """Bytes of a .safetensors file whose header holds the network.

    The same arguments give the same bytes: the header has one entry, because safetensors does not promise
    an order of several.
    """
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    description = {"network": network.model_dump(mode="json"), "metadata": dict(metadata or {})}
    return dump_safetensors(tensors, {HEADER: json.dumps(description, sort_keys=True)})


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and matrices as float16, half the size; biases and BatchNorm's statistics stay float32."""
    return {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in state.items()}


def save_weights(
    path: str | Path, module: nn.Module, network: NetworkSpec, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a generator as a .safetensors file (path or URI) that says by itself which network it belongs to.

    `metadata` is any JSON. Raises ResourceError where the file cannot be written.
    """
    filesystem, inside = open_filesystem(path)
    write_file(filesystem, inside, encode_weights(module.state_dict(), network, metadata))


# ------------------------------------------------------------------------------------------- reading


def load_generator(path: str | Path, network: NetworkSpec | None = None) -> tuple[Generator, NetworkSpec | None]:
    """The generator in a weights file (path or URI): see `decode_generator`. InputError for a missing file."""
    return decode_generator(read_weights(path), str(path), network)


def decode_generator(
    data: bytes, source: str, network: NetworkSpec | None = None
) -> tuple[Generator, NetworkSpec | None]:
    """A generator ready to run (evaluation mode, float32, CPU) from the bytes of any weights file.

    `network` overrides what the file says, for files that do not tell. What is none of our layouts is loaded by
    spandrel where that is installed; the network is None where it cannot be built from options alone. `source`
    names the file in errors. Raises ModelError for a corrupt, unsafe or unknown one.
    """
    content = decode_weights(data, source)
    _check_values(content.state, source)
    try:
        found = _identify(content, network, source)
        if found is not None:
            return generator_from_state(found[0], found[1], source), found[0]
        refusal = ModelError(_unknown(source, content.state))
    except ModelError as error:
        if network or content.network:
            raise
        refusal = error
    return _by_spandrel(content.state, source, refusal)


def _by_spandrel(
    state: dict[str, Tensor], source: str, refusal: ModelError
) -> tuple[Generator, NetworkSpec | None]:
    """What our own reader refused: one of our families in a layout that spandrel knows, or something else."""
    is_ours = recognises(state)
    try:
        module = with_spandrel(state, source)
    except ModelError as error:
        first = refusal if is_ours else error
        try:
            module = with_spandrel(without_common_name(state), source)
        except ModelError:
            raise first from None
    if module is None:
        hint = "" if is_ours else "; pip install 'ray-sr[foreign]' knows more of them"
        raise ModelError(f"{refusal}{hint}")
    return module, module.network


def generator_from_state(network: NetworkSpec, state: Mapping[str, Tensor], source: str) -> Generator:
    """Build `network` and load `state` strictly; evaluation mode, float32, CPU. Raises ModelError."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten: leave no trace
        with torch.device("meta"), _WithoutDraws():  # a forged file can claim a network that no memory holds
            _check_fits(build_generator(network), state, source)
        module = build_generator(network)
    load_strict(module, state, source)
    return module.eval()


class _WithoutDraws(TorchFunctionMode):
    """Leaves out the drawing of weights on the meta device, where it imports torch's compiler, for seconds.

    Not on others: `trunc_normal_` draws until all values are within its limits.
    """

    _DRAWS = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in self._DRAWS:
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)


def decode_weights(data: bytes, source: str) -> WeightsFile:
    """Parse the bytes of a .safetensors or PyTorch file; `source` names it in errors. Raises ModelError."""
    if _is_safetensors(data, source):
        return _decode_safetensors(data, source)
    return WeightsFile(find_state(_safe_unpickle(data, source), source), None, {})


def _is_safetensors(data: bytes, source: str) -> bool:
    """By its content, the length of a JSON object and that object; by the name where that is neither of both."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length + 8 <= len(data):
        return True
    return source.lower().endswith(".safetensors") and not data.startswith(_TORCH)


def read_state(path: str | Path, part: str) -> dict[str, Tensor]:
    """The tensors in a weights file of any network, or those under `part` where the file is a checkpoint of ours.

    Raises InputError for a missing file, ModelError for a damaged one.
    """
    source = str(path)
    data = read_weights(path)
    if _is_safetensors(data, source):
        return _decode_safetensors(data, source).state
    content = _safe_unpickle(data, source)
    inner = content.get(part) if isinstance(content, dict) else None
    state = find_state(inner if isinstance(inner, dict) else content, source)
    _check_values(state, source)
    return state


def read_weights(path: str | Path) -> bytes:
    """The bytes of a weights file, a URI, or a pipe that has a name. Raises InputError."""
    try:
        if Path(path).is_fifo():  # cannot be gone back in, as pyarrow does
            return Path(path).read_bytes()
        return read_file(*open_filesystem(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot read this weights file: {first_line(error)}") from None


def _decode_safetensors(data: bytes, source: str) -> WeightsFile:
    try:
        state = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        own = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(HEADER)
        description = json.loads(own) if own else None
        network = NetworkSpec.model_validate(description["network"]) if description else None
        metadata = dict(description["metadata"]) if description else {}
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ModelError(f"{source}: its header names no network that this ray-sr builds: {reason}") from None
    except (SafetensorError, AttributeError, ValueError, TypeError, KeyError) as error:
        if something := _something_else(data):
            raise ModelError(f"{source}: no weights, it is {something}") from None
        raise ModelError(f"{source}: not a readable safetensors file: {first_line(error)}") from None
    return WeightsFile(state if network else find_state(state, source), network, metadata)


def _safe_unpickle(data: bytes, source: str) -> object:
    """The objects of a PyTorch file. A damaged file can fail in any way, so every failure is a ModelError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on the kind of file; the outcome below tells more
            check_archive(io.BytesIO(data))
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error) or type(error).__name__
        if named := re.search(r"GLOBAL (\S+)", text):
            reason = f"it holds Python objects beside weights ({named[1]})"
        elif "TorchScript" in text:
            reason = "it is a TorchScript program"
        elif something := _something_else(data):
            raise ModelError(f"{source}: no weights, it is {something}") from None
        else:
            raise ModelError(f"{source}: not a readable PyTorch weights file: {_reason(text)}") from None
    raise ModelError(f"{source}: refused and not run, because {reason}: ask its author for safetensors")


def _something_else(data: bytes) -> str | None:
    """What the file is where its first bytes say that it is neither PyTorch's nor safetensors."""
    if not data.strip():
        return "empty"
    text = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((what for first, what in _SOMETHING_ELSE.items() if text.startswith(first)), None)
    if found is None and data.startswith(_TORCH[0]):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError):  # one that is damaged
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
            if not any(name.endswith(("data.pkl", "constants.pkl", "version")) for name in names):
                return f"a zip archive of {', '.join(map(printable, names[:3])) or 'nothing'}: unpack it"
    return found


def check_archive(file: IO[bytes] | Path) -> None:
    """Compare the checksums in one of torch's archives, which torch itself does not.

    Raises ValueError for a damaged member. Files of the format before archives have none, and writers may leave
    them out (0).
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.CRC and member.compress_type == zipfile.ZIP_STORED:
                try:
                    with archive.open(member) as content:
                        while content.read(1 << 20):
                            pass
                except zipfile.BadZipFile:
                    raise ValueError(f"{member.filename} in it is damaged") from None


def _reason(text: str) -> str:
    """The first sentence of torch's own explanation, or what its unpickler says."""
    inner = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    return (inner[1] if inner else text.splitlines()[0]).split(". ")[0]


def _identify(
    content: WeightsFile, network: NetworkSpec | None, source: str
) -> tuple[NetworkSpec, dict[str, Tensor]] | None:
    if network:
        return network, our_names(content.state)
    return (content.network, content.state) if content.network else recognise(content.state, source)


def _unknown(source: str, state: Mapping[str, Tensor]) -> str:
    first = ", ".join(f"{key} {shape(tensor)}" for key, tensor in list(state.items())[:2])
    return f"{source}: not a generator that ray-sr knows; its first weights are {first}"


# ------------------------------------------------------------------------------------ strict loading


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Load `state` into `module`; every key and shape must match and every value must be finite.

    `source` names the state's origin in errors. Raises ModelError naming the first differing keys and
    shapes; nothing is loaded then.
    """
    _check_fits(module, state, source)
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{source}: {key} has values that are not finite: damage, or training diverged")
    module.load_state_dict(dict(state))


def _check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights without values, or with such as no network computes with. Raises ModelError."""
    for key, tensor in state.items():
        if tensor.is_meta:
            raise ModelError(f"{source}: {key} has a shape and no values: it was saved from PyTorch's meta device")
        if key.rpartition(".")[2] not in ("weight", "bias"):
            continue
        if not tensor.is_floating_point():
            raise ModelError(f"{source}: {key} is {tensor.dtype}: weights are needed that are not quantised")
        if tensor.layout == torch.strided and not torch.isfinite(tensor).all():
            raise ModelError(f"{source}: {key} has values that are not finite: damage, or training diverged")


def _check_fits(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    differences = _differences(module.state_dict(), state)
    if differences:
        shown = "; ".join(differences[:3])
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelError(f"{source}: these weights belong to another network: {shown}{more}")


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from fitting, in the network's order: missing, misshapen, then unexpected keys."""
    found = []
    for key, tensor in expected.items():
        given = state.get(key)
        if given is None:
            found.append(f"{key} {shape(tensor)} is missing")
        elif given.shape != tensor.shape:
            found.append(f"{key} is {shape(given)} in the file and {shape(tensor)} in the network")
        elif given.is_floating_point() != tensor.is_floating_point() or given.layout != torch.strided:
            found.append(f"{key} is {given.dtype} {given.layout} in the file")
    return found + [f"{key} {shape(state[key])} is unexpected" for key in state if key not in expected]


def shape(tensor: Tensor) -> str:
    """Shape for people: 64x3x3x3."""
    return "x".join(str(side) for side in tensor.shape) or "scalar"
