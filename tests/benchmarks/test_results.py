"""`make results`: each row is what evaluation gives, for our models and for peers from a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import results
from ray_sr import model_store
from ray_sr.evaluation import evaluate
from ray_sr.model_store import Store, load_model
from tests.photos import write_real_photos
from tests.small_models import NETWORK, generator

PEERS = """
from torch import nn
PEERS = {("nearest", 2): None, ("nearest", 4): None}
def load(name, scale):
    return nn.Upsample(scale_factor=scale)
"""


def test_rows_are_what_evaluation_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_store, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "shipped")
    Store(tmp_path / "shipped").publish("light", generator(1), NETWORK)
    folder = write_real_photos(tmp_path / "sets" / "Two" / "HR", side=64)
    peers, table, rows = tmp_path / "peers.py", tmp_path / "RESULTS.md", tmp_path / "rows.json"
    peers.write_text(PEERS)
    arguments = [str(tmp_path / "sets"), "--peers", str(peers), "-o", str(table), "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    results.main()
    found = {(row["model"], row["scale"]): row for row in json.loads(rows.read_text())}
    assert list(found) == [("bicubic", 2), ("light", 2), ("nearest", 2), ("bicubic", 4), ("nearest", 4)]
    for (name, scale), row in found.items():
        ref = f"{peers}:{name}:{scale}" if name == "nearest" else name
        expected = evaluate(load_model(ref, scale=scale), folder)
        assert row["psnr_y"] == pytest.approx(expected.mean["psnr_y"], abs=1e-4)
        assert f"{expected.mean['psnr_y']:.2f}" in table.read_text()
    assert "| *nearest* | 0 |" in table.read_text()


def test_a_folder_without_sets_is_an_error_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["results", str(tmp_path), "-o", str(tmp_path / "RESULTS.md")])
    with pytest.raises(SystemExit, match="no folder SET/HR"):
        results.main()
    assert not (tmp_path / "RESULTS.md").exists()
