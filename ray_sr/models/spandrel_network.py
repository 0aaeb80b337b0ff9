"""Networks of spandrel's as generators, and a small trial that finds out how each can be run.

The networks come as spandrel has them, under their own names of weights: a file of such a generator is one of its
architecture for every program that uses spandrel.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from ray_sr.errors import ModelError
from ray_sr.models.generator import UNKNOWN_RECEPTIVE_FIELD, Capability, Generator
from ray_sr.recipes import architectures
from ray_sr.recipes.architectures import Architecture
from ray_sr.recipes.networks import NetworkSpec, SpandrelSpec

Forward = Callable[[nn.Module, Tensor], Tensor]

_STRIP = 256  # columns of the picture that shows how far a network sees
_TOUCHED = 16  # of these, the first ones are changed
_FAR = 1e-3  # of values in [0, 1], a quarter of an 8-bit step: what a change elsewhere may do to a tile
_PATIENCE_S = 0.5  # networks that take longer for a small picture are tried no further
_WINDOWS = ("window", "win_size", "split_size", "stripe_size")  # options that lay a grid over the picture


@dataclass(frozen=True)
class Facts:
    """What spandrel tells of a network, and what the trial found.

    `minimum`, `multiple`, `square`: sizes of input that the layers take. `grid`: a tile agrees with the whole
    only where it starts at a multiple of this. `bf16`, `channels_last`: whether it runs so, and with about the
    same result. `call`: how spandrel runs it, where that is more than calling it.
    """

    call: Forward
    minimum: int
    multiple: int
    square: bool
    grid: int
    receptive_field: int
    whole_image: bool
    bf16: bool
    channels_last: bool

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The next size that the layers take."""
        high, wide = (-(-max(side, self.minimum) // self.multiple) * self.multiple for side in (height, width))
        return (max(high, wide),) * 2 if self.square else (high, wide)

    def capability(self, scale: int) -> Capability:
        return Capability(
            scale=scale,
            channels=3,
            multiple=self.grid,
            receptive_field=self.receptive_field,
            bf16=self.bf16,
            whole_image_norm=self.whole_image,
        )


class SpandrelGenerator(Generator):
    """A network of spandrel's: N×3×h×w in [0, 1] to N×3×(h·scale)×(w·scale), sizes padded as spandrel pads them.

    The state dict is that of the network alone. Where the trial found that it cannot bear bfloat16, it computes
    in float32 under autocast too; where it cannot bear channels_last, it keeps the contiguous layout.
    """

    def __init__(self, spec: SpandrelSpec, scale: int) -> None:
        super().__init__()
        architecture = architectures.find(spec.architecture)
        if torch.get_default_device().type == "meta":  # for its shapes alone: nothing can be tried there
            self.layers, self.facts = _without_values(architecture, spec, scale), _NOTHING_KNOWN
        else:
            self.layers = architecture.build(spec.options, scale)
            self.facts = facts_of(spec.architecture, json.dumps(spec.options, sort_keys=True), scale)
        self.capability = self.facts.capability(scale)

    @classmethod
    def of(cls, layers: nn.Module, facts: Facts, scale: int) -> Self:
        """Around a network that is there already."""
        made = cls.__new__(cls)
        Generator.__init__(made)
        made.layers, made.facts, made.capability = layers, facts, facts.capability(scale)
        return made

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        scale = self.capability.scale
        padded = self._padded(x if self.facts.channels_last else x.contiguous())
        if padded is x:
            padded = x.clone()  # some networks change their input in place
        if self.facts.bf16:
            result = self.facts.call(self.layers, padded)
        else:
            with torch.autocast(x.device.type, enabled=False):
                result = self.facts.call(self.layers, padded.float())
        return result[..., : height * scale, : width * scale]

    def _padded(self, x: Tensor) -> Tensor:
        """Mirrored at the right and below as far as there is something to mirror, then repeated."""
        height, width = x.shape[-2:]
        wanted = self.facts.padded_size(height, width)
        below, beside = wanted[0] - height, wanted[1] - width
        if not below and not beside:
            return x
        mirrored = min(beside, width - 1), min(below, height - 1)
        x = F.pad(x, (0, mirrored[0], 0, mirrored[1]), "reflect")
        return F.pad(x, (0, beside - mirrored[0], 0, below - mirrored[1]), "replicate")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        if not self.facts.channels_last and kwargs.get("memory_format") is torch.channels_last:
            kwargs["memory_format"] = torch.contiguous_format
        return super().to(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.layers.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.layers.load_state_dict(state_dict, *args, **kwargs)

    def limits(self) -> list[str]:
        """What the trial found that it cannot bear, for people."""
        found = [] if self.facts.bf16 else ["generator in float32: bfloat16 does not suit it"]
        return found + (
            [] if self.facts.channels_last else ["generator contiguous: channels_last does not suit it"]
        )


def _without_values(architecture: Architecture, spec: SpandrelSpec, scale: int) -> nn.Module:
    """On the meta device, or on the CPU where the network's making reads values."""
    try:
        return architecture.build(spec.options, scale)
    except ModelError:
        with torch.device("cpu"):
            return architecture.build(spec.options, scale)


@functools.lru_cache(maxsize=64)
def facts_of(name: str, options: str, scale: int) -> Facts:
    """The facts of an architecture with these options (JSON): a network is built, loaded by spandrel, and tried."""
    architecture, given = architectures.find(name), json.loads(options)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False):
        torch.manual_seed(0)
        network = architecture.build(given, scale).eval()
        descriptor = architectures.round_trip(network, architecture, given, scale)
        try:
            _check_told(network, descriptor, architecture, given)
            return facts_by_trial(network, descriptor, {**architecture.options, **given})
        except ModelError:
            raise
        except Exception as error:  # options that do not fit each other show in many ways
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ModelError(f"architecture {name} cannot run with these options: {reason}") from None


def from_descriptor(descriptor: Any) -> SpandrelGenerator:
    """A network that spandrel loaded, as a generator in evaluation mode, with its `network` where that is known."""
    network = _told_network(descriptor)
    if network is None:
        return SpandrelGenerator.of(descriptor.model, _without_trial(descriptor), descriptor.scale).eval()
    spec = network.generator
    assert isinstance(spec, SpandrelSpec)
    facts = facts_of(spec.architecture, json.dumps(spec.options, sort_keys=True), descriptor.scale)
    made = SpandrelGenerator.of(descriptor.model, facts, descriptor.scale).eval()
    made.network = network
    return made


def _told_network(descriptor: Any) -> NetworkSpec | None:
    """The recipe's generator of such a network; None where its options make another one, or none."""
    name = architectures.name_of(descriptor.model)
    if name is None:
        return None
    options = architectures.told_options(architectures.find(name), descriptor.model)
    spec = SpandrelSpec(architecture=name, options=options)
    try:
        network = NetworkSpec.model_validate({"scale": descriptor.scale, "generator": spec})
        with torch.random.fork_rng(devices=[]):
            expected = SpandrelGenerator(spec, descriptor.scale).state_dict()
    except (ModelError, ValidationError):
        return None
    found = descriptor.model.state_dict()
    fits = expected.keys() == found.keys() and all(expected[key].shape == found[key].shape for key in found)
    return network if fits else None


def _check_told(
    network: nn.Module, descriptor: Any, architecture: Architecture, options: Mapping[str, Any]
) -> None:
    """ModelError where spandrel's own network of the same weights gives another picture."""
    theirs = SpandrelGenerator.of(descriptor.model.eval(), _without_trial(descriptor), descriptor.scale)
    ours = SpandrelGenerator.of(network, theirs.facts, descriptor.scale)
    picture = _picture(theirs.facts, 24, 24)
    with torch.inference_mode():
        if torch.allclose(ours(picture), theirs(picture), atol=1e-4):
            return
    assumed = ", ".join(architectures.untold(descriptor, options)) or "other options"
    raise ModelError(
        f"architecture {architecture.name}: the weights do not tell these options, and other programs assume "
        f"{assumed}: take these values"
    )


# ------------------------------------------------------------------------------------------------- the trial


def facts_by_trial(network: nn.Module, descriptor: Any, options: Mapping[str, Any]) -> Facts:
    """Runs a network on small pictures: in other layouts and precisions, and to see how far a pixel reaches."""
    facts = _without_trial(descriptor)
    picture = _picture(facts, 16, 16)
    with torch.no_grad():
        expected = _run(network, facts, picture)
        began = time.perf_counter()
        _run(network, facts, picture)
        is_quick = time.perf_counter() - began < _PATIENCE_S
    facts = replace(
        facts,
        channels_last=_bears_channels_last(network, facts, picture, expected),
        grid=math.lcm(facts.multiple, *_windows(options)),
    )
    if not is_quick:
        return facts
    facts = replace(facts, bf16=facts.bf16 and _bears_bfloat16(network, facts, picture, expected))
    if facts.square:
        return facts
    with torch.no_grad():
        return _reach(network, facts, descriptor.scale)


def _reach(network: nn.Module, facts: Facts, scale: int) -> Facts:
    """Grid and receptive field as a long, low picture shows them whose beginning is changed.

    Exact where nothing changes at the other end. Where something does, the network is very deep or looks at the
    whole: then tiles are right as long as that is little.
    """
    rows = max(16, facts.minimum)
    strip = _picture(facts, rows, max(_STRIP, facts.minimum))
    changed = strip.clone()
    changed[..., :_TOUCHED] = 1.0  # another mean, too
    expected = _run(network, facts, strip)
    difference = (_run(network, facts, changed) - expected).abs().amax((0, 1, 2))
    columns = difference.unflatten(0, (-1, scale)).amax(1)
    reached = int(torch.nonzero(columns).max()) if columns.any() else _TOUCHED - 1
    grid = _grid(network, facts, strip, expected)
    radius = max(0, reached - _TOUCHED + 1) + grid - 1  # how far it is depends on the place within the grid
    if reached < len(columns) - facts.grid:
        return replace(facts, grid=grid, receptive_field=max(1, radius), whole_image=False)
    whole = facts.whole_image or float(columns[-len(columns) // 4 :].max()) > _FAR
    return replace(facts, grid=grid, whole_image=whole)


def _grid(network: nn.Module, facts: Facts, strip: Tensor, expected: Tensor) -> int:
    """The smallest shift of the picture that shifts the result, as far from its ends as can be."""
    scale = expected.shape[-1] // strip.shape[-1]
    middle = slice(expected.shape[-1] * 3 // 8, expected.shape[-1] * 5 // 8)

    def off(shift: int) -> float:
        result = _run(network, facts, torch.roll(strip, -shift, -1))
        return float((torch.roll(result, shift * scale, -1) - expected)[..., middle].abs().max())

    largest = math.lcm(facts.grid, 32)
    if largest > strip.shape[-1] // 4:
        return facts.grid
    bound = 2 * off(largest) + 1e-6 * float(expected.abs().max())  # what looks at the whole is never quite equal
    grids = (facts.grid * factor for factor in (1, 2, 4, 8, 16))
    return next((grid for grid in grids if grid < largest and off(grid) <= bound), largest)


def _windows(options: Mapping[str, Any]) -> Iterator[int]:
    for name, value in options.items():
        if any(word in name for word in _WINDOWS) and "pretrained" not in name:
            sizes = value if isinstance(value, (list, tuple)) else [value]
            yield from (size for size in sizes if isinstance(size, int) and size > 0)


def _bears_channels_last(network: nn.Module, facts: Facts, picture: Tensor, expected: Tensor) -> bool:
    try:
        other = copy.deepcopy(network).to(memory_format=torch.channels_last)
        with torch.no_grad():
            result = _run(other, facts, picture.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # .view() of what does not lie in one piece, or a kernel of five dimensions
        return False
    return _deviation(result, expected) <= 0.1


def _bears_bfloat16(network: nn.Module, facts: Facts, picture: Tensor, expected: Tensor) -> bool:
    """Whether a step of training stays finite in autocast, and the picture within a hundredth of its contrast."""
    other = copy.deepcopy(network)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                result = _run(other, facts, picture).float()
            finite = _one_step(other.train(), facts, picture.expand(2, -1, -1, -1))
    except RuntimeError:  # an operation that has no bfloat16
        return False
    return finite and _deviation(result, expected) <= max(1.0, 2.55 * float(expected.std()))


def _one_step(network: nn.Module, facts: Facts, picture: Tensor) -> bool:
    """Forward and backward; whether all gradients are finite."""
    _run(network, facts, picture).float().square().mean().backward()
    return all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def _deviation(result: Tensor, expected: Tensor) -> float:
    """RMS difference in levels of 255."""
    return float((result - expected).square().mean().sqrt()) * 255


def _run(network: nn.Module, facts: Facts, picture: Tensor) -> Tensor:
    return facts.call(network, picture.clone())


def _picture(facts: Facts, height: int, width: int) -> Tensor:
    """Noise of a size that the layers take, at least height×width."""
    height, width = facts.padded_size(height, width)
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def _without_trial(descriptor: Any) -> Facts:
    sizes = descriptor.size_requirements
    tiles_well = descriptor.tiling.name == "SUPPORTED"
    return Facts(
        call=descriptor._call_fn,
        minimum=sizes.minimum,
        multiple=sizes.multiple_of,
        square=sizes.square,
        grid=sizes.multiple_of,
        receptive_field=UNKNOWN_RECEPTIVE_FIELD,
        whole_image=not tiles_well or sizes.square,
        bf16=descriptor.supports_bfloat16,
        channels_last=True,
    )


def _plain_call(model: nn.Module, image: Tensor) -> Tensor:
    result: Tensor = model(image)
    return result


_NOTHING_KNOWN = Facts(_plain_call, 0, 1, False, 1, UNKNOWN_RECEPTIVE_FIELD, True, False, False)
