"""Clips on a cluster: the same file as on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av", reason="clips need the extra ray-sr[video]")

from ray_sr.store import load_model
from ray_sr.upscaling import Engine
from ray_sr.video.clips import upscale_clip
from tests.video.made_clips import Clip, contents, moving_bar, uneven, write_clip

ROOT = Path(__file__).parents[2]


def test_two_nodes_give_the_file_of_one_machine(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(index) for index in range(120)], uneven(120)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.video.two_nodes", str(source), str(tmp_path / "cluster.mp4")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=400, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"status": "done", "reason": "", "nodes": 2, "frames": 120}
    model = load_model("bicubic", scale=2)
    engine = Engine(model.module, model.capability, device="cpu")
    assert upscale_clip(source, tmp_path / "here.mp4", engine, quiet=True).status == "done"
    assert (tmp_path / "cluster.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()
    assert contents(tmp_path / "cluster.mp4").times == contents(source).times
