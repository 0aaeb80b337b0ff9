"""ONNX files answer like the networks they were made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ray_sr.errors import ModelError, ResourceError
from ray_sr.models.export import _difference, export_onnx
from ray_sr.recipes.networks import (
    DeblurGANSpec,
    NetworkSpec,
    RLFNSpec,
    RRDBNetSpec,
    SPANSpec,
    SRResNetSpec,
)
from tests.models.weight_files import COMPACT, made, network


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        network(RRDBNetSpec(blocks=1, channels=8, growth=4), 2),
        network(SRResNetSpec(blocks=1, channels=8), 3, "signed"),
        network(DeblurGANSpec(blocks=1, channels=4), 1),
        network(SPANSpec(blocks=1, channels=8), 2),
        network(RLFNSpec(blocks=1, channels=8, attention=4), 2),
    ],
    ids=lambda spec: spec.generator.kind,
)
def test_onnx_answers_like_torch_at_any_size(tmp_path: Path, spec: NetworkSpec) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="needs the ONNX packages: pip install ray-sr[onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="needs the ONNX packages: pip install ray-sr[onnx]")
    module = made(spec)
    result = export_onnx(module, tmp_path / "net.onnx")
    assert result.max_difference is not None
    assert result.max_difference < 1e-4
    session = runtime.InferenceSession((tmp_path / "net.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert (properties["scale"], NetworkSpec.model_validate_json(properties["network"])) == (str(spec.scale), spec)
    assert properties["multiple"] == "1"
    for count, height, width in ((1, 8, 40), (3, 52, 12), (1, 8, 8), (1, 9, 23)):
        image = torch.rand(count, 3, height, width)
        with torch.inference_mode():
            expected = module(image)
        found = session.run(["upscaled"], {"image": image.numpy()})[0]
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_a_graph_that_holds_the_size_it_was_made_at_is_told() -> None:
    """As exporters make them of some networks of spandrel's; here of ours, with a sample and no free sizes."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the ONNX packages: pip install ray-sr[onnx]")
    module = made(network(COMPACT))
    program = torch.onnx.export(
        module, (torch.rand(1, 3, 16, 16),), dynamo=True, input_names=["image"], verbose=False
    )
    assert program is not None
    with pytest.raises(ModelError, match=r"not written, because ONNX Runtime fails on it at 1x3x8x24: ") as refusal:
        _difference(module, program.model_proto.SerializeToString())
    assert "\n" not in str(refusal.value)


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ResourceError, match=r"onnxscript.*pip install ray-sr\[onnx\]"):
        export_onnx(made(network(COMPACT)), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
