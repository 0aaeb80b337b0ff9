"""Generators from elsewhere: other programs' weight layouts, spandrel's architectures, and Python files.

The layouts are those of BasicSR, Real-ESRGAN, ESRGAN (its first and second naming), BSRGAN and MMagic. A
state dict is recognised by its keys; the network's size follows from the shapes.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ray_sr.errors import InputError, ModelError
from ray_sr.models import Capability, Generator, build_generator
from ray_sr.models.generator import UNKNOWN_RECEPTIVE_FIELD
from ray_sr.models.spandrel_network import from_descriptor
from ray_sr.recipes import architectures
from ray_sr.recipes.networks import CompactSpec, NetworkSpec, RLFNSpec, RRDBNetSpec, SPANSpec
from ray_sr.storage import first_line

State = dict[str, Tensor]

# ------------------------------------------------------------------- the state dict inside a checkpoint

# Names of what holds a generator's weights, as letters and digits alone; averaged weights go before the others.
_CONTAINERS = (
    *("paramsema", "generatorema", "gema", "netgema", "modelema", "emamodel", "ema"),
    *("params", "generatorstatedict", "generator", "gen", "netg", "g"),
    *("statedict", "modelstatedict", "model", "network", "net", "weights", "state"),
)
_NO_GENERATOR = re.compile(
    r"disc|critic|optim|sched|scaler|loss|teacher|vgg|percept|lpips|^(net|model)?_?d(_|$)", re.IGNORECASE
)
_SUBMODULES = ("generator_ema.", "generator.", "netG.")
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTERS = ("steps", "n_averaged")  # averaged models count their updates beside the weights


def find_state(content: object, source: str) -> State:
    """The generator's tensors by name, without containers, sub-module names and wrappers' prefixes.

    Averaged weights go before the others. Raises ModelError where there are none, or it is not told which of
    several are the generator's.
    """
    for _ in range(8):
        inner = _held(content)
        named = [key for key in inner if _plain(key) in _CONTAINERS]
        if named:
            content = inner[min(named, key=lambda key: _CONTAINERS.index(_plain(key)))]
        elif len(inner) == 1 and not _weights_of(content):  # a name of its own, with no weights beside it
            content = next(iter(inner.values()))
        elif inner and not _weights_of(content):
            raise ModelError(f"{source}: which of {', '.join(map(str, inner))} is the generator is not known")
        else:
            break
    state = _weights_of(content, counters=True)
    if not state:
        raise ModelError(f"{source}: no weights in it: a state dict of named tensors is needed")
    return _recognised_part(_strip(_submodule(_strip(state))))


def without_common_name(state: State) -> State:
    """The state dict without the name that all its keys begin with, if there is one: model.a, model.b -> a, b."""
    names = {key.partition(".")[0] for key in state}
    return {key.partition(".")[2]: value for key, value in state.items()} if len(names) == 1 else state


def _held(content: object) -> dict[Any, Any]:
    """The dicts of tensors inside this one, and what holds such, but no discriminator, optimizer and the like."""
    return {
        key: value
        for key, value in _items(content)
        if isinstance(value, dict) and not _NO_GENERATOR.search(str(key)) and (_weights_of(value) or _held(value))
    }


def _weights_of(content: object, counters: bool = False) -> State:
    """The tensors right in a dict; single numbers, as of steps and epochs, only with `counters`."""
    tensors = {str(key): value for key, value in _items(content) if isinstance(value, Tensor)}
    if not counters:
        return {key: tensor for key, tensor in tensors.items() if tensor.ndim}
    return {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] not in _COUNTERS}


def _items(content: object) -> list[tuple[Any, Any]]:
    return list(content.items()) if isinstance(content, dict) else []


def _plain(key: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


def _recognised_part(state: State) -> State:
    """The part under one name (net_g.…, ema_model.…) that is one of our families, where the whole is none."""
    if recognises(state):
        return state
    parts: dict[str, State] = {}
    for key, tensor in state.items():
        name, _, rest = key.partition(".")
        if rest and not _NO_GENERATOR.search(name):
            parts.setdefault(name, {})[rest] = tensor
    known = {name: part for name, part in ((n, _strip(p)) for n, p in parts.items()) if recognises(part)}
    return known[max(known, key=lambda name: "ema" in name.lower())] if known else state


def _submodule(state: State) -> State:
    """The generator's part of a whole GAN's state dict."""
    for prefix in _SUBMODULES:
        part = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if part:
            return part
    return state


def _strip(state: State) -> State:
    """Remove the prefixes that DistributedDataParallel, averaging and torch.compile put before every key."""
    for prefix in _WRAPPERS * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


# ------------------------------------------------------------------------------------ known layouts


@dataclass(frozen=True)
class Family:
    """One of our generators under the names that others gave its weights."""

    anchor: str
    """Key that every file of the family has, after renaming."""
    keys: str
    """Pattern of all keys, after renaming."""
    renames: tuple[tuple[str, str], ...]
    """Patterns of foreign names with our names."""
    infer: Callable[[State], NetworkSpec]
    """The network, from all renamed keys."""
    ignored: str = "(?!)"
    """Pattern of keys that hold nothing of their own."""


def recognise(state: Mapping[str, Tensor], source: str) -> tuple[NetworkSpec, State] | None:
    """Our network for a foreign state dict, with the keys renamed to ours; None for other architectures.

    Raises ModelError for our families in a form that ray-sr does not build.
    """
    found = _family_of(state)
    return (_inferred(*found, source), _own(*found)) if found else None


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of one of our families, whatever their shapes."""
    return _family_of(state) is not None


def our_names(state: Mapping[str, Tensor]) -> State:
    """The state dict with the keys of our families renamed to ours, any other as it is."""
    found = _family_of(state)
    return _own(*found) if found else dict(state)


def _family_of(state: Mapping[str, Tensor]) -> tuple[Family, State] | None:
    for family in _FAMILIES:
        renamed = {_rename(key, family.renames): tensor for key, tensor in state.items()}
        if family.anchor in renamed and all(re.fullmatch(family.keys, key) for key in _own(family, renamed)):
            return family, renamed
    return None


def _own(family: Family, state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not re.fullmatch(family.ignored, key)}


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key, count = re.subn(pattern, replacement, key)
        if count:
            return key
    return key


def _inferred(family: Family, state: State, source: str) -> NetworkSpec:
    try:
        return family.infer(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{source}: ray-sr does not build this network: {where}: {first['msg']}") from None
    except (KeyError, IndexError) as error:
        raise ModelError(f"{source}: an incomplete generator: {error.args[0]} is missing") from None
    except ValueError as error:
        raise ModelError(f"{source}: ray-sr does not build this network: {error}") from None


def _count(state: State, prefix: str) -> int:
    """Number of numbered children under `prefix`, from the highest number."""
    numbers = [re.match(rf"{prefix}\.(\d+)\.", key) for key in state]
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _colours(given: int, expected: tuple[int, ...]) -> None:
    if given not in expected:
        raise ValueError(f"it takes {given} input channels, not RGB")


def _rrdbnet(state: State) -> NetworkSpec:
    channels, inputs = state["conv_first.weight"].shape[:2]
    _colours(inputs, (3, 12, 48))  # x2 and x1 fold 2x2 and 4x4 pixels into channels, then enlarge by 4
    generator = RRDBNetSpec(
        blocks=_count(state, "body"), channels=channels, growth=state["body.0.rdb1.conv1.weight"].shape[0]
    )
    return NetworkSpec.model_validate({"scale": {3: 4, 12: 2, 48: 1}[inputs], "generator": generator})


def _msrresnet(state: State) -> NetworkSpec:
    channels, inputs = state["conv_first.weight"].shape[:2]
    _colours(inputs, (3,))
    steps = sum(f"upconv{i}.weight" in state for i in (1, 2, 3))
    if not steps:
        scale, upsampling = math.isqrt(state["conv_last.weight"].shape[0] // 3), "direct"
    else:
        scale = 3 if state["upconv1.weight"].shape[0] == 9 * channels else 2**steps
        upsampling = "progressive"
    size = {"blocks": _count(state, "body"), "channels": channels}
    generator = {"kind": "msrresnet", "upsampling": upsampling, **size}
    return NetworkSpec.model_validate({"scale": scale, "generator": generator})


def _compact(state: State) -> NetworkSpec:
    channels, inputs = state["body.0.weight"].shape[:2]
    _colours(inputs, (3,))
    if "body.1.weight" not in state:
        raise ValueError("its activation has no weights, so the file does not tell which one; name the network")
    last = _count(state, "body") - 1
    scale = math.isqrt(state[f"body.{last}.weight"].shape[0] // 3)
    generator = CompactSpec(convs=(last - 2) // 2, channels=channels)
    return NetworkSpec.model_validate({"scale": scale, "generator": generator})


def _span(state: State) -> NetworkSpec:
    """Folded kernels (eval_conv) are left out: those of files in training are out of date."""
    channels, inputs = state["conv_1.sk.weight"].shape[:2]
    _colours(inputs, (3,))
    generator = SPANSpec(
        blocks=_highest(state, "block_"), channels=channels, published_input="no_norm" not in state
    )
    scale = math.isqrt(state["upsampler.0.weight"].shape[0] // 3)
    return NetworkSpec.model_validate({"scale": scale, "generator": generator})


def _rlfn(state: State) -> NetworkSpec:
    """The file does not tell which range of values it is for: the one in which a gray picture stays as it is."""
    channels, inputs = state["conv_1.weight"].shape[:2]
    _colours(inputs, (3,))
    inner, narrow = (state[f"block_1.{name}.weight"].shape[0] for name in ("c1_r", "esa.conv1"))
    size = {"channels": channels, "inner": None if inner == channels else inner, "attention": narrow}
    scale = math.isqrt(state["upsampler.0.weight"].shape[0] // 3)
    generators = [
        RLFNSpec(blocks=_highest(state, "block_"), published_input=published, **size) for published in (True, False)
    ]
    networks = [NetworkSpec.model_validate({"scale": scale, "generator": spec}) for spec in generators]
    return min(networks, key=lambda network: _change_of_gray(network, state))


def _change_of_gray(network: NetworkSpec, state: State) -> float:
    with torch.random.fork_rng(devices=[]):
        module = build_generator(network).eval()
    module.load_state_dict(state)
    gray = torch.full((1, 3, 24, 24), 0.5)
    with torch.inference_mode():
        return float((module(gray) - 0.5).abs().mean())


def _highest(state: State, prefix: str) -> int:
    numbers = [re.match(rf"{prefix}(\d+)\.", key) for key in state]
    return max(int(found[1]) for found in numbers if found)


_FAMILIES = (
    Family(
        anchor="body.0.rdb1.conv1.weight",
        keys=r"(conv_(first|body|up1|up2|hr|last)|body\.\d+\.rdb[123]\.conv[1-5])\.(weight|bias)",
        renames=(
            (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
            (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
            (r"^model\.0\.", "conv_first."),
            (r"^model\.3\.", "conv_up1."),
            (r"^model\.6\.", "conv_up2."),
            (r"^model\.8\.", "conv_hr."),
            (r"^model\.10\.", "conv_last."),
            (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
            (r"^trunk_conv\.", "conv_body."),
            (r"^upconv([12])\.", r"conv_up\1."),
            (r"^HRconv\.", "conv_hr."),
        ),
        infer=_rrdbnet,
    ),
    Family(
        anchor="body.0.conv1.weight",
        keys=r"(conv_(first|hr|last)|upconv[123]|body\.\d+\.conv[12])\.(weight|bias)",
        renames=(
            (r"^(?:recon_trunk|trunk_net)\.(\d+)\.", r"body.\1."),
            (r"^upsample(\d)\.upsample_conv\.", r"upconv\1."),
            (r"^HRconv\.", "conv_hr."),
        ),
        infer=_msrresnet,
    ),
    Family(
        anchor="block_1.c1_r.sk.weight",
        keys=r"((conv_[12]|block_\d+\.c[123]_r)\.(sk|conv\.[012])|conv_cat|upsampler\.0)\.(weight|bias)",
        renames=(),
        infer=_span,
        ignored=r"no_norm|.*\.eval_conv\.(weight|bias)",
    ),
    Family(
        anchor="block_1.esa.conv1.weight",
        keys=r"(conv_[12]|block_\d+\.(c[123]_r|c5|esa\.conv(_f|[1-4]))|upsampler\.0)\.(weight|bias)",
        renames=(),
        infer=_rlfn,
    ),
    Family(anchor="body.0.weight", keys=r"body\.\d+\.(weight|bias)", renames=(), infer=_compact),
)

# ----------------------------------------------------------------------------------- other programs


def with_spandrel(state: State, source: str) -> Generator | None:
    """A network of any architecture that spandrel knows; None where spandrel is not installed.

    Its `network` is the recipe's generator of kind spandrel, or None where the weights alone do not make one.
    Raises ModelError for unknown architectures and for networks that do not map RGB to RGB.
    """
    if not architectures.is_installed():
        return None
    import spandrel

    try:
        descriptor = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        first = ", ".join(list(state)[:3])
        raise ModelError(f"{source}: neither ray-sr nor spandrel knows this network of {first} …") from None
    except Exception as error:  # a damaged state dict of a known network fails in spandrel in many ways
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(f"{source}: spandrel cannot load this network: {reason}") from None
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise ModelError(f"{source}: {descriptor.architecture.name} needs a mask beside the photo")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        channels = f"{descriptor.input_channels} to {descriptor.output_channels}"
        raise ModelError(f"{source}: {descriptor.architecture.name} maps {channels} channels, not RGB to RGB")
    return from_descriptor(descriptor.float())


# ------------------------------------------------------------------------------------- Python files


class PythonModule(Generator):
    """A callable from a user's Python file: N×3×h×w in [0, 1] to N×3×(h·scale)×(w·scale).

    Without a `capability` of its own it is run on the whole photo, because nothing tells how far it sees: many
    published networks (IMDN, RCAN, Fast-SRGAN) weigh their channels by statistics of the whole.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], scale: int, source: str) -> None:
        super().__init__()
        self.function = function
        self.source = source
        self.capability = getattr(function, "capability", None) or Capability(
            scale=scale,
            channels=3,
            multiple=1,
            receptive_field=UNKNOWN_RECEPTIVE_FIELD,
            bf16=False,
            whole_image_norm=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.function(x)
        count, channels, height, width = x.shape
        scale = self.capability.scale
        if out.shape != (count, channels, height * scale, width * scale):
            raise ModelError(f"{self.source}: gave {tuple(out.shape)} for {tuple(x.shape)} at scale {scale}")
        return out


def from_python_file(file: str | Path, name: str, scale: int) -> Generator:
    """What `load(name, scale)` of a Python file returns, as a module with a capability.

    This RUNS THE FILE'S CODE: use it only with files you trust. The callable may carry a `capability` of its
    own; without one photos are tiled only where memory demands it. Raises InputError for a missing file,
    ModelError where the file or its `load` fails.
    """
    source = f"{file}:{name}:{scale}"
    load = getattr(_import(Path(file)), "load", None)
    if not callable(load):
        raise ModelError(f"{file}: has no function load(name, scale)")
    try:
        with torch.random.fork_rng(devices=[]):
            function = load(name, scale)
    except Exception as error:
        raise ModelError(f"{source}: its load() failed: {type(error).__name__}: {first_line(error)}") from error
    if not callable(function):
        raise ModelError(f"{source}: its load() gave {type(function).__name__}, not a function of a batch")
    return PythonModule(function, scale, source).eval()


def _import(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(f"{file}: no such Python file")
    spec = importlib.util.spec_from_file_location(f"ray_sr_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{file}: cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    return module
