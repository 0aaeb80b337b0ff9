"""Generators for other programs: ONNX with dynamic height and width, safetensors under common names."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_sr.errors import ModelError, ResourceError
from ray_sr.models import Capability, Generator, folded
from ray_sr.recipes.networks import CompactSpec, NetworkSpec, RRDBNetSpec, SpandrelSpec
from ray_sr.storage import open_filesystem, write_file

TOLERANCE = 2e-4  # of values in [0, 1]: a twentieth of an 8-bit step, far above float32 rounding


@dataclass(frozen=True)
class OnnxExport:
    """What export_onnx made; the difference is None where onnxruntime is not installed to measure it."""

    path: str
    opset: int
    max_difference: float | None


def export_onnx(module: Generator, path: str | Path, *, opset: int = 18) -> OnnxExport:
    """Write a generator as ONNX: input `image` N×3×h×w in [0, 1], output `upscaled`, all of N, h and w free.

    Heights and widths are any from 8 on: where the network works on a grid, the graph pads and crops. It holds
    `scale`, `multiple` (of sizes that it takes: 1) and the network as metadata. Where onnxruntime is installed, the
    file's answers on three sizes are compared with torch's before it is put in place: ModelError if it has none, as
    graphs that hold the size they were made at, or they differ by more than TOLERANCE. Raises ResourceError without
    the onnx packages or where the file cannot be written.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ResourceError(f"ONNX export needs {' and '.join(missing)}: pip install ray-sr[onnx]")
    filesystem, inside = open_filesystem(path)
    data = _onnx_bytes(module, opset)
    difference = None
    if importlib.util.find_spec("onnxruntime"):
        difference = _difference(module, data)
        if not difference <= TOLERANCE:
            raise ModelError(f"{path}: not written, because ONNX differs from torch by {difference:.2g}")
    write_file(filesystem, inside, data)
    return OnnxExport(str(path), opset, difference)


def foreign_use(network: NetworkSpec) -> str | None:
    """Why other programs (spandrel, chaiNNer …) cannot use this generator's .safetensors; None if they can."""
    generator = network.generator
    if isinstance(generator, SpandrelSpec):
        return None  # its weights have spandrel's own names
    if not isinstance(generator, RRDBNetSpec | CompactSpec):
        return f"other programs have no {generator.kind}"
    if network.value_range == "signed":
        return "other programs feed [0, 1] to this network, which works on [-1, 1]"
    if isinstance(generator, RRDBNetSpec) and generator.growth != 32:
        return "other programs build RRDBNet with growth 32 only"
    if isinstance(generator, CompactSpec) and generator.activation != "prelu":
        return "other programs build Compact with PReLU only"
    return None


class _Plain(nn.Module):
    """The generator inside a module without hooks, so that its own hooks are traced with it.

    Networks pad by steps of Python, which a graph of free sizes cannot hold: here the last row and column are
    repeated by indices until the sides are multiples, and the result is cropped.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.multiple, self.scale = generator.capability.multiple, generator.capability.scale

    def forward(self, image: Tensor) -> Tensor:
        if self.multiple == 1:
            return self.generator(image)
        height, width = image.shape[-2:]
        padded = image.index_select(2, self._places(image, height)).index_select(3, self._places(image, width))
        return self.generator(padded)[..., : height * self.scale, : width * self.scale]

    def _places(self, image: Tensor, side: int) -> Tensor:
        padded = (side + self.multiple - 1) // self.multiple * self.multiple
        return torch.arange(padded, device=image.device).clamp(max=side - 1)


def _onnx_bytes(module: Generator, opset: int) -> bytes:
    import onnx

    capability = module.capability
    side = _side(capability, 12)
    sample = torch.rand(2, capability.channels, side, side + capability.multiple, device=_device(module))
    free: dict[int, Any] = {
        0: torch.export.Dim.DYNAMIC,
        2: torch.export.Dim.DYNAMIC,
        3: torch.export.Dim.DYNAMIC,
    }
    try:
        with _quiet():
            program = torch.onnx.export(
                _Plain(folded(module)),
                (sample,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["upscaled"],
                dynamic_shapes=({**free},),
                verbose=False,
            )
    except Exception as error:  # torch.export and onnxscript raise their own and each other's errors
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"this network cannot be exported to ONNX: {reason}") from error
    proto = program.model_proto  # type: ignore[union-attr]
    onnx.helper.set_model_props(proto, _properties(module))
    return proto.SerializeToString()


def _properties(module: Generator) -> dict[str, str]:
    """What a program that runs the file has to know."""
    numbers = {"scale": str(module.capability.scale), "multiple": "1"}
    return numbers | ({"network": module.network.model_dump_json()} if module.network else {})


def _difference(module: Generator, data: bytes) -> float:
    """Largest difference of ONNX Runtime's answers to torch's, on sizes that the export did not see."""
    import onnxruntime

    def answer(image: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        except Exception as error:  # ONNX Runtime has many kinds without a common one
            size = "x".join(map(str, image.shape))
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"not written, because ONNX Runtime fails on it at {size}: {reason}") from error

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    capability = module.capability
    draw = torch.Generator().manual_seed(0)
    largest = 0.0
    for count, height, width in ((1, 8, 24), (1, 20, 16), (3, 16, 16)):
        sides = (_side(capability, height), _side(capability, width))
        image = torch.rand(count, capability.channels, *sides, generator=draw)
        with torch.inference_mode():
            expected = module(image.to(_device(module))).cpu()
        found = answer(image)
        if found.shape != expected.shape:
            return float("inf")
        largest = max(largest, (found - expected).abs().max().item())
    return largest


def _side(capability: Capability, at_least: int) -> int:
    """The smallest side that the network takes and that is not below `at_least`."""
    return -(-at_least // capability.multiple) * capability.multiple


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its inner workings as warnings and on the log; its errors are exceptions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
