"""What spandrel offers as generators: its image architectures, their options and scales, and the checks of these.

spandrel is the library that other programs of the field (chaiNNer and others) load weights with. It deduces a
network's options from the weights, so a network trained here is theirs as it is, if the options are such that the
weights tell: `round_trip` finds out by loading them.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import json
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from ray_sr.errors import ModelError, ResourceError

if TYPE_CHECKING:
    from torch import nn

MISSING = "generator kind spandrel needs the library spandrel: pip install 'ray-sr[foreign]'"
LICENCE = "permissive (MIT, Apache 2.0 or public domain), as spandrel states for all that it comes with"
SCALES = (1, 2, 3, 4, 8)

Options = Mapping[str, Any]

_INPUTS = ("num_in_ch", "in_nc", "in_chans", "in_channels", "inp_channels", "in_ch", "img_channel", "n_colors")
_OUTPUTS = ("num_out_ch", "out_nc", "out_chans", "out_channels", "out_ch")
_FRACTIONS = ("factor", "ratio", "range", "rate", "scale")  # numbers, though some defaults are whole ones
_SCALE = ("upscale", "scale", "up_scale", "upscaling_factor", "upscale_factor")

# Options without which an architecture's own defaults make no network, or none of the scale that is asked for.
PRESETS: dict[str, dict[str, Any]] = {
    "SwinIR": {"window_size": 8, "upsampler": "pixelshuffle"},
    "Swin2SR": {"window_size": 8, "upsampler": "pixelshuffle"},
    "HAT": {"window_size": 16},
    "GRL": {
        "window_size": 32,
        "stripe_size": [64, 64],
        "stripe_shift": True,
        "anchor_window_down_factor": 4,
        "upsampler": "pixelshuffle",
    },
    "ATD": {"upsampler": "pixelshuffle"},
    "DRCT": {"upsampler": "pixelshuffle"},
    "SAFMN": {"dim": 36},
    "SAFMNBCIE": {"dim": 36},
    "NAFNet": {"width": 32, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1, 1, 1, 1]},
}

# All others that have a parameter for the scale are made for all of SCALES, those without one for x1.
_OFFERED: dict[str, tuple[int, ...]] = {
    "SwiftSRGAN": (1, 2, 4, 8),
    "ESRGAN": (1, 2, 4, 8),
    "MMRealSR": (1, 2, 4),
    "FDAT": (1, 2, 3, 4),
    "SAFMNBCIE": (1,),
    "UpCunet2x": (2,),
    "UpCunet2x_fast": (2,),
    "UpCunet3x": (3,),
    "UpCunet4x": (4,),
}
_OTHER_THAN_IMAGES = {
    "LaMa": "it needs a mask beside the photo",
    "GFPGAN": "it is made for faces of one size",
    "RestoreFormer": "it is made for faces of one size",
    "AuraSR": "it is made for pictures of one size",
    "DRUNet": "it needs a map of the noise beside the photo",
}


@dataclass(frozen=True)
class Parameter:
    """An option of an architecture: its default, its annotation in spandrel, and whether it must be given."""

    name: str
    default: Any
    annotation: Any
    required: bool = False

    def misfit(self, value: Any) -> str | None:
        """What is wrong with `value`, or None. Lists are taken for tuples; a default of None tells no type."""
        if typing.get_origin(self.annotation) is typing.Literal:
            known = typing.get_args(self.annotation)
            if value in known:
                return None
            return f"should be {', '.join(map(repr, known))}{did_you_mean(str(value), known)} (got {value!r})"
        kinds = _kinds(self.annotation) or self._kinds_of_default
        if any(_fits(value, kind) for kind in kinds):
            return _misfit_inside(value, self.default)
        wanted = " or ".join(_NAMES.get(kind, "none") for kind in kinds)
        return f"should be {wanted} (got {value!r})"

    @property
    def _kinds_of_default(self) -> tuple[type, ...]:
        kind = _kind(self.default)
        return (float,) if kind is int and self.name.endswith(_FRACTIONS) else (kind,)


@dataclass(frozen=True)
class Architecture:
    """One kind of network: what builds it, and the options that a recipe may set.

    `fixed` are its other parameters: the channels of RGB. `scale_parameter` is None where there is one scale.
    """

    name: str
    network: type[nn.Module]
    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Any]
    scale_parameter: str | None

    @property
    def scales(self) -> tuple[int, ...]:
        return _OFFERED.get(self.name, SCALES if self.scale_parameter else (1,))

    @property
    def options(self) -> dict[str, Any]:
        """Every option with the value it has where a recipe says nothing."""
        given = PRESETS.get(self.name, {})
        return {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}

    def errors(self, options: Options) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) for each one that is unknown, of a wrong type or missing."""
        for name, value in options.items():
            if name not in self.parameters:
                known = did_you_mean(name, self.parameters) or f" (options: {', '.join(self.parameters)})"
                yield name, f"{self.name} has no such option{known}"
            elif wrong := self.parameters[name].misfit(value):
                yield name, wrong
        for name, parameter in self.parameters.items():
            if parameter.required and name not in options:
                yield name, f"required by {self.name}, but not given"

    def build(self, options: Options, scale: int) -> nn.Module:
        """The network with fresh weights. Raises ModelError where the options do not fit each other."""
        if wrong := [f"{name}: {text}" for name, text in self.errors(options)]:
            raise ModelError(f"architecture {self.name}: {'; '.join(wrong)}")
        if scale not in self.scales:
            offered = ", ".join(f"x{each}" for each in self.scales)
            raise ModelError(f"architecture {self.name} has no x{scale}: it offers {offered}")
        keywords = {**self.fixed, **options}
        if self.scale_parameter:
            keywords[self.scale_parameter] = [scale] if self.name == "IPT" else scale
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, on how the network is written
                return self.network(**keywords)
        except Exception as error:  # each architecture has its own way to refuse options
            raise ModelError(
                f"architecture {self.name} cannot be built with these options: {_reason(error)}"
            ) from None


def find(name: str) -> Architecture:
    """The architecture of this name. Raises ResourceError without spandrel, ModelError for an unknown name."""
    known = architectures()
    if name in known:
        return known[name]
    if why := _OTHER_THAN_IMAGES.get(name):
        raise ModelError(f"architecture {name} cannot be trained here: {why}")
    hint = did_you_mean(name, known) or ": `ray-sr recipes architectures` lists them"
    raise ModelError(f"no architecture {name!r}{hint}")


def check(name: str, options: Options) -> None:
    """Raises pydantic's ValidationError, with every wrong option at its place, where no such network can be."""
    try:
        found: list[tuple[tuple[str, ...], str]] = [
            (("options", option), text) for option, text in find(name).errors(options)
        ]
    except (ModelError, ResourceError) as error:
        found = [(("architecture",), str(error))]
    if found:
        details = [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{error}", {"error": text}), loc=place, input=name
            )
            for place, text in found
        ]
        raise ValidationError.from_exception_data("architecture", details)


@functools.lru_cache(maxsize=256)
def check_built(name: str, options: str, scale: int) -> None:
    """Builds the network with these options (JSON) and runs it, to see whether it can be. Raises ModelError."""
    import torch

    architecture, given = find(name), json.loads(options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = architecture.build(given, scale).eval()
        descriptor = round_trip(network, architecture, given, scale)
        try:
            descriptor(torch.rand(1, 3, 16, 16))
        except Exception as error:  # options that do not fit each other show in many ways
            raise ModelError(f"architecture {name} cannot run with these options: {_reason(error)}") from None


def is_installed() -> bool:
    return importlib.util.find_spec("spandrel") is not None


@functools.cache
def architectures() -> dict[str, Architecture]:
    """All image architectures of the installed spandrel by name. Raises ResourceError without spandrel."""
    if not is_installed():
        raise ResourceError(MISSING)
    from spandrel import MAIN_REGISTRY

    found = {}
    for support in MAIN_REGISTRY:
        theirs = support.architecture
        networks = _networks_of(theirs)
        for network in networks:
            name = str(theirs.id) if len(networks) == 1 else network.__name__
            if name not in _OTHER_THAN_IMAGES:
                found[name] = _read(name, network)
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def name_of(network: nn.Module) -> str | None:
    """The architecture that a network of spandrel's belongs to."""
    return next((each.name for each in architectures().values() if each.network is type(network)), None)


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """`, did you mean 'SPAN'?` where a known word is close to this one, whatever its case, else nothing."""
    by_lower = {str(each).lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f", did you mean {by_lower[close[0]]!r}?" if close else ""


def _networks_of(theirs: Any) -> tuple[type[nn.Module], ...]:
    """The classes of networks that an architecture's `load` may return, by its declaration."""
    for base in getattr(type(theirs), "__orig_bases__", ()):
        for argument in typing.get_args(base):
            return typing.get_args(argument) or (argument,)
    return ()


def _read(name: str, network: type[nn.Module]) -> Architecture:
    signature = inspect.signature(network.__init__).parameters
    try:
        annotations = typing.get_type_hints(network.__init__)
    except (NameError, TypeError):  # some name types that are imported for the type checker alone
        annotations = {}
    fixed: dict[str, Any] = {}
    parameters = {}
    preset = PRESETS.get(name, {})
    scale_parameter = next((each for each in _SCALE if each in signature and name != "SAFMNBCIE"), None)
    for each, parameter in list(signature.items())[1:]:
        default = None if parameter.default is parameter.empty else parameter.default
        if each in _INPUTS:
            fixed[each] = 3
        elif each in _OUTPUTS:
            fixed[each] = default if default not in (None, 1) else 3
        elif each != scale_parameter and not callable(default):
            required = parameter.default is parameter.empty and each not in preset
            parameters[each] = Parameter(each, default, annotations.get(each), required)
    return Architecture(name, network, parameters, fixed, scale_parameter)


# --------------------------------------------------------------------------------------- types of options

_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The plain types that an annotation allows; none where it tells nothing of use."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inner = [_kinds(part) for part in typing.get_args(annotation)]
        return tuple(kind for kinds in inner for kind in kinds) if all(inner) else ()
    plain = typing.get_origin(annotation) or annotation
    if plain is type(None):
        return (type(None),)
    if isinstance(plain, type) and issubclass(plain, (list, tuple)):
        return (list,)
    return (plain,) if plain in _NAMES else ()


def _kind(value: Any) -> type:
    if isinstance(value, (list, tuple)):
        return list
    return next((kind for kind in _NAMES if isinstance(value, kind)), type(None))


def _fits(value: Any, kind: type) -> bool:
    if kind is type(None):
        return True  # an option that is none by default may be anything
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple)) if kind is list else isinstance(value, kind)


def _misfit_inside(value: Any, default: Any) -> str | None:
    """What is wrong with the members of a list, which are of the kind of those of the default."""
    if not isinstance(value, (list, tuple)) or not isinstance(default, (list, tuple)) or not default:
        return None
    kind = _kind(default[0])
    wrong = next((each for each in value if not _fits(each, kind)), None)
    return None if wrong is None else f"holds {wrong!r}, each should be {_NAMES.get(kind, 'none')}"


# ------------------------------------------------------------------------------------------- spandrel's own view


def round_trip(network: nn.Module, architecture: Architecture, options: Options, scale: int) -> Any:
    """spandrel's descriptor of these weights. Raises ModelError where it takes them for another network.

    `options` that weights do not tell, such as the range that a network works in, have to be what spandrel
    assumes, or no other program could use the trained weights.
    """
    import spandrel

    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    try:
        descriptor = spandrel.MAIN_REGISTRY.load(state)
    except Exception as error:  # its loaders fail in many ways
        reason = _reason(error)
        raise ModelError(f"architecture {architecture.name}: spandrel cannot load such weights: {reason}") from None
    if type(descriptor.model) is not architecture.network:
        taken = name_of(descriptor.model) or descriptor.architecture.name
        raise ModelError(f"architecture {architecture.name}: spandrel takes such weights for {taken}")
    if descriptor.scale != scale:
        raise ModelError(
            f"architecture {architecture.name} with these options enlarges by {descriptor.scale}, not by {scale}"
        )
    return descriptor


def untold(descriptor: Any, options: Options) -> list[str]:
    """Those of the options that spandrel would give another value, by what the weights tell."""
    theirs = getattr(descriptor.model, "hyperparameters", {})
    return [
        f"{name} {theirs[name]!r}"
        for name, value in options.items()
        if name in theirs and _as_list(theirs[name]) != _as_list(value)
    ]


def told_options(architecture: Architecture, network: nn.Module) -> dict[str, Any]:
    """The options of a network that spandrel loaded, as a recipe would give them."""
    theirs = getattr(network, "hyperparameters", {})
    defaults = architecture.options
    preset = PRESETS.get(architecture.name, {})
    return {
        name: _as_list(theirs[name])
        for name in architecture.parameters
        if name in theirs and (name in preset or _as_list(theirs[name]) != _as_list(defaults[name]))
    }


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _as_list(value: Any) -> Any:
    return [_as_list(each) for each in value] if isinstance(value, (list, tuple)) else value
