"""Kills, resumed runs, broken and hostile files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="clips need the extra ray-sr[video]")

from ray_sr.errors import InputError, RecipeError
from ray_sr.images import Limits
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine
from ray_sr.video.clips import upscale_clip
from ray_sr.video.options import ClipOptions, ClipResult
from ray_sr.video.processes import answers, probe_clip
from tests.video.made_clips import Clip, contents, moving_bar, rgb_frames, steady, uneven, write_clip

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = [moving_bar(index) for index in range(240)]
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", Clip(pictures, uneven(240)))


def _upscale(engine: Engine, source: Path, target: Path, **options: Any) -> ClipResult:
    return upscale_clip(source, target, engine, options=ClipOptions(**options), quiet=True)


class _Interrupting(Bicubic):
    """Ends the run after some tiles, as Ctrl-C does."""

    left = 150

    def forward(self, batch: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().forward(batch)


def test_an_interrupted_clip_goes_on_to_the_same_bytes(
    engine: Engine, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.mp4"
    _upscale(engine, source, whole)
    model = _Interrupting(2)
    broken = Engine(model, model.capability)
    model.left = 150
    broken._exact.left = broken._fast.left = 150  # type: ignore[union-attr]
    target = tmp_path / "big.mp4"
    with pytest.raises(KeyboardInterrupt):
        _upscale(broken, source, target)
    assert "--resume goes on" in capfd.readouterr().err
    assert not target.exists()
    folder = tmp_path / ".big.mp4.segments"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nut")}
    assert kept
    with pytest.raises(RecipeError, match="--resume goes on with it"):
        _upscale(engine, source, target)
    with pytest.raises(RecipeError, match="differs in encoding"):
        _upscale(engine, source, target, resume=True, crf=30)
    fresh = Engine(Bicubic(2), Bicubic(2).capability)
    before = fresh.stats.tiles
    assert _upscale(fresh, source, target, resume=True).status == "done"
    assert fresh.stats.tiles - before < 240
    assert target.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.mp4", "whole.mp4"]
    assert _upscale(engine, source, target, resume=True).status == "skipped"


def test_a_killed_command_goes_on_to_the_same_bytes(engine: Engine, source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_sr.cli", "upscale", str(source), "-n", "bicubic", "-s", "2", "-o"]
    target, folder = tmp_path / "big.mp4", tmp_path / ".big.mp4.segments"
    process = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob("0*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = not target.exists()
    done = subprocess.run([*command, str(target), "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not killed or "going on after" in done.stderr
    whole = subprocess.run([*command, str(tmp_path / "whole.mp4")], capture_output=True, check=False)
    assert whole.returncode == 0
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert contents(target).times == contents(source).times


def test_another_source_of_the_same_name_is_not_mixed_in(engine: Engine, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(0)] * 9, steady(9)))
    folder = tmp_path / ".b.mp4.segments"
    folder.mkdir()
    (folder / "job.json").write_text('{"source": {"size": 1}}')
    with pytest.raises(RecipeError, match="differs in source"):
        _upscale(engine, source, tmp_path / "b.mp4", resume=True)
    assert _upscale(engine, source, tmp_path / "b.mp4", existing="overwrite").status == "done"


def _hostile(folder: Path, good: bytes) -> dict[str, tuple[bytes, str]]:
    """Name -> content and words of the error."""
    other = folder / "secret.txt"
    other.write_text("secret")
    return {
        "empty.mp4": (b"", "cannot be opened as a clip"),
        "text.mkv": (b"no clip at all\n" * 99, "cannot be opened as a clip"),
        "cut.mp4": (good[: len(good) // 2], ""),
        "head.mp4": (good[:40], "cannot be opened as a clip"),
        "list.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://" + bytes(other) + b"\n", "cannot be"),
        "concat.mkv": (b"ffconcat version 1.0\nfile " + bytes(other) + b"\n", "cannot be opened as a clip"),
        "noise.webm": (np.random.default_rng(0).bytes(20_000), "cannot be opened as a clip"),
    }


def test_files_that_are_no_clips_are_named_with_the_reason(engine: Engine, source: Path, tmp_path: Path) -> None:
    for name, (data, words) in _hostile(tmp_path, source.read_bytes()).items():
        (tmp_path / name).write_bytes(data)
        result = _upscale(engine, tmp_path / name, tmp_path / f"big_{name}")
        assert result.status == "failed"
        assert words in result.reason
        assert "\n" not in result.reason
        assert not (tmp_path / f"big_{name}").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_clip_damaged_on_the_way_is_refused_or_read_as_far_as_it_goes(engine: Engine, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    source = write_clip(tmp_path / "a.mkv", Clip(pictures, steady(40), sound=None))
    data = bytearray(source.read_bytes())
    for _ in range(60):
        data[int(rng.integers(len(data) // 3, len(data) * 2 // 3))] ^= 0xFF
    (tmp_path / "damaged.mkv").write_bytes(data)
    refused = _upscale(engine, tmp_path / "damaged.mkv", tmp_path / "b.mkv")
    assert refused.status == "failed"
    assert "--lenient" in refused.reason
    assert not (tmp_path / ".b.mkv.segments").exists()
    taken = _upscale(
        engine, tmp_path / "damaged.mkv", tmp_path / "c.mkv", limits=Limits(strict=False), existing="overwrite"
    )
    assert taken.status == "done"
    assert 10 <= taken.frames <= 40
    assert len(rgb_frames(tmp_path / "c.mkv")) == taken.frames


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_ends_in_a_result_or_in_one_line(engine: Engine, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    endings = ("mp4", "mkv")
    source = write_clip(
        tmp_path / f"a.{endings[seed % 2]}", Clip([moving_bar(i) for i in range(8)], steady(8), sound=None)
    )
    data = bytearray(source.read_bytes())
    for _ in range(int(rng.integers(1, 40))):
        data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
    source.write_bytes(data)
    result = _upscale(engine, source, tmp_path / f"b{source.suffix}", limits=Limits(strict=bool(seed % 3)))
    assert result.status in ("done", "failed")
    assert "\n" not in result.reason


def test_frames_over_the_limit_are_refused_before_they_are_decoded(engine: Engine, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(0)] * 2, steady(2)))
    result = _upscale(engine, source, tmp_path / "b.mp4", limits=Limits(max_pixels=64 * 48 - 1))
    assert "over the limit" in result.reason


def test_a_decoder_that_is_stuck_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    task = {
        "task": "probe",
        "format": "mp4",
        "path": str(tmp_path / "pipe.mp4"),
        "max_pixels": 1 << 20,
        "max_side": 1 << 15,
    }
    begin = time.monotonic()
    with pytest.raises(InputError, match="was stuck for 3 s"):
        list(answers(task, "pipe.mp4", silence_s=3))
    assert time.monotonic() - begin < 30
    with pytest.raises(InputError, match="not a regular file"):
        probe_clip(tmp_path / "pipe.mp4", Limits(), "mp4")


def test_a_decoder_that_is_killed_is_an_error_that_names_the_clip(source: Path) -> None:
    task = {"task": "probe", "path": str(source.parent / "pipe"), "max_pixels": 1 << 20, "max_side": 1 << 15}
    os.mkfifo(source.parent / "pipe")
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    others = set(children.read_text().split())  # of other tests
    found = answers(task, "the clip", silence_s=60)

    def kill() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (pids := set(children.read_text().split()) - others) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(int(pids.pop()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match="the clip: the decoder failed on it"):
        next(found)
    killer.join()


def test_without_pyav_the_command_says_what_to_install(source: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['av'] = None; from ray_sr.cli import main; main()"
    command = [sys.executable, "-c", code, "upscale", str(source), "-n", "bicubic", "-o", str(tmp_path / "b.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "pip install 'ray-sr[video]'" in done.stderr
