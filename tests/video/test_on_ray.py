"""Clips, animations and photos on a cluster of two nodes: the same files as on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="clips need the extra ray-sr[video]")

from ray_sr.images import Photo, read_photo, write_photo
from ray_sr.store import load_model
from ray_sr.upscaling import Engine
from ray_sr.upscaling.on_ray import MANIFEST
from ray_sr.upscaling.record import RECORD
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.animations import upscale_animation
from ray_sr.video.clips import upscale_clip
from tests.video.made_clips import Clip, contents, moving_bar, uneven, write_clip

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which commands work on two nodes."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    program: Any = subprocess.Popen(
        [sys.executable, "-m", "tests.video.two_nodes"], text=True, cwd=ROOT, env=environment, **pipes
    )
    try:
        address = program.stdout.readline().strip()
        assert address, "no cluster"
        yield {**environment, "RAY_ADDRESS": address}
    finally:
        program.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = load_model("bicubic", scale=4)
    return Engine(model.module, model.capability, device="cpu")


def _command(place: Path, output: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "ray_sr.cli", "upscale", str(place), "-o", str(output), "--ray"]
    return [*command, "-n", "bicubic", "-s", "2", "-d", "cpu", *options]


def test_a_job_that_was_killed_goes_on_to_the_file_of_one_machine(
    cluster: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(index) for index in range(240)], uneven(240)))
    target, segments = tmp_path / "large.mp4", tmp_path / ".large.mp4.segments"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = subprocess.Popen(_command(source, target), env=cluster, cwd=ROOT, **quiet)
    deadline = time.monotonic() + PATIENCE_S
    while not list(segments.glob("0*.json")) and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.kill()
    job.wait()
    resumed = _command(source, target, "--resume", "--json")
    done = subprocess.run(resumed, capture_output=True, text=True, env=cluster, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert upscale_clip(source, tmp_path / "here.mp4", engine, wanted=TargetSize(2), quiet=True).status == "done"
    assert target.read_bytes() == (tmp_path / "here.mp4").read_bytes()
    assert contents(target).times == contents(source).times
    assert not segments.exists()


def test_a_folder_of_all_kinds_gives_what_one_machine_gives(
    cluster: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "large"
    (folder / "deep").mkdir(parents=True)
    write_photo(folder / "a.png", Photo(np.full((6, 8, 3), 90, np.uint8)))
    frames = [Image.fromarray(moving_bar(index, 12, 16)) for index in range(4)]
    for name in ("b.gif", "deep/b.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=100, loop=0)
    (folder / "bad.gif").write_bytes(b"GIF89a")
    clip = write_clip(folder / "deep" / "c.mp4", Clip([moving_bar(index) for index in range(5)], uneven(5)))
    (folder / "notes.txt").write_text("x")
    command = _command(folder, out, "--json")
    done = subprocess.run(command, capture_output=True, text=True, env=cluster, cwd=ROOT, check=False)
    assert done.returncode == 3, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert (told["done"], told["failed"]) == (4, 1), done.stderr[-3000:]
    assert [Path(name).name for name in told["passed_over"]] == ["notes.txt"]
    assert "bad.gif" in done.stderr
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    made = [name for name in made if not name.endswith(RECORD)]
    assert made == ["a_x2.png", "b_x2.gif", "deep/b_x2.webp", "deep/c_x2.mp4", MANIFEST]
    assert read_photo(out / "a_x2.png").width == 16
    for name in ("b.gif", "deep/b.webp"):
        here = tmp_path / f"here.{name[-3:]}"
        upscale_animation(folder / name, here, engine, wanted=TargetSize(2), quiet=True)
        assert here.read_bytes() == (out / name.replace("b.", "b_x2.")).read_bytes()
    upscale_clip(clip, tmp_path / "here.mp4", engine, wanted=TargetSize(2), quiet=True)
    assert (tmp_path / "here.mp4").read_bytes() == (out / "deep" / "c_x2.mp4").read_bytes()
