"""Clips and animations among the photos of folders, also of watched ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="clips need the extra ray-sr[video]")

from ray_sr.errors import RecipeError
from ray_sr.images import Photo, read_photo, write_photo
from ray_sr.models import Bicubic
from ray_sr.store import load_model
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions, Summary, upscale_files
from ray_sr.upscaling.record import RECORD
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.upscaling.watching import Watch
from ray_sr.video import inputs
from ray_sr.video.clips import upscale_clip
from ray_sr.video.inputs import MovingInFolders
from tests.video.made_clips import Clip, contents, moving_bar, steady, uneven, write_clip

PATIENCE_S = 120.0
CHOICES = {"codec": None, "crf": None, "resume": False}


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _animation(path: Path) -> Path:
    frames = [Image.fromarray(moving_bar(index, 12, 16)) for index in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def _filled(folder: Path) -> Path:
    """Two photos, two clips, three animations, and a text, two of them in a folder inside."""
    (folder / "deep").mkdir(parents=True)
    write_photo(folder / "a.jpg", Photo(np.full((6, 8, 3), 90, np.uint8)))
    write_photo(folder / "deep" / "still.png", Photo(np.full((6, 8, 3), 30, np.uint8)))
    for name in ("a.png", "b.gif", "deep/c.webp"):
        _animation(folder / name)
    write_clip(folder / "a.mp4", Clip([moving_bar(index) for index in range(5)], steady(5)))
    write_clip(folder / "deep" / "d.avi", Clip([moving_bar(index) for index in range(5)], steady(5), sound=None))
    (folder / "notes.txt").write_text("x")
    return folder


RESULTS = [
    "a_png_x2.png",
    "a_x2.mp4",
    "a_x2.png",
    "b_x2.gif",
    "deep/c_x2.webp",
    "deep/d_x2.mkv",
    "deep/still_x2.png",
]


def _moving(engine: Engine, options: FileOptions, watching: bool = False, **choices: Any) -> MovingInFolders:
    chosen = {**CHOICES, **choices}
    common: dict[str, Any] = {"wanted": TargetSize(), "options": options, "choices": chosen, "quiet": True}
    return MovingInFolders(engine, model="bicubic", watching=watching, **common)


def _run(
    engine: Engine, places: list[Path], output: Path | None, crf: int | None = None, **options: Any
) -> Summary:
    chosen = FileOptions(recursive=True, **options)
    moving = _moving(engine, chosen, crf=crf)
    return upscale_files(places, output, engine, options=chosen, quiet=True, moving=moving)


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return sorted(str(path.relative_to(folder)) for path in files)


def test_clips_and_animations_of_folders_are_made_after_the_photos(engine: Engine, tmp_path: Path) -> None:
    photos, out = _filled(tmp_path / "in"), tmp_path / "out"
    summary = _run(engine, [photos], out)
    assert [file.reason for file in summary.files] == [""] * 7
    assert _names(out) == RESULTS
    assert [Path(name).name for name in summary.passed_over] == ["notes.txt"]
    assert [Path(file.source).name for file in summary.files[:2]] == ["a.jpg", "still.png"]
    assert read_photo(out / "a_x2.png").width == 16
    with Image.open(out / "a_png_x2.png") as image:
        assert (image.n_frames, image.size) == (4, (32, 24))  # type: ignore[attr-defined]
    assert contents(out / "a_x2.mp4").times == contents(photos / "a.mp4").times
    again = _run(engine, [photos], out, existing="skip")
    assert again.count("skipped") == 7
    assert _run(engine, [photos], out).count("failed") == 7


def test_results_of_clips_beside_them_are_not_enlarged_by_another_run(engine: Engine, tmp_path: Path) -> None:
    _filled(tmp_path)
    assert _run(engine, [tmp_path], tmp_path).count("done") == 7
    again = _run(engine, [tmp_path], tmp_path, suffix="_again")
    assert (len(again.files), again.count("done")) == (7, 7)
    assert not [name for name in _names(tmp_path) if "_x2_again" in name]


def test_what_does_not_fit_one_clip_is_its_failure_and_the_rest_is_done(engine: Engine, tmp_path: Path) -> None:
    photos = _filled(tmp_path / "in")
    (photos / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    (tmp_path / "out" / ".a_x2.mp4.segments").mkdir(parents=True)
    (tmp_path / "out" / ".a_x2.mp4.segments" / "job.json").write_text('{"source": {"size": 1}}')
    summary = _run(engine, [photos], tmp_path / "out")
    failed = {Path(file.source).name: file.reason for file in summary.files if file.status == "failed"}
    assert sorted(failed) == ["a.mp4", "broken.mp4"]
    assert "unfinished run" in failed["a.mp4"]
    assert summary.count("done") == 6
    assert _run(engine, [photos], tmp_path / "other", crf=60).count("failed") == 3  # clips alone have a crf


def test_without_pyav_clips_are_passed_over_and_animations_are_made(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    summary = _run(engine, [_filled(tmp_path / "in")], tmp_path / "out")
    assert summary.count("done") == 5
    assert sorted(Path(name).name for name in summary.passed_over) == ["a.mp4", "d.avi", "notes.txt"]
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(tmp_path / "in" / "a.mp4", only)
    assert "holds no picture" in _run(engine, [only], tmp_path / "out").files[0].reason


def test_options_of_photos_alone_are_refused(engine: Engine) -> None:
    with pytest.raises(RecipeError, match="--compare"):
        _moving(engine, FileOptions(compare=True))


def test_a_file_is_looked_into_once_and_again_when_it_changes(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    is_moving = inputs.is_moving

    def look(path: str) -> bool:
        looked.append(path)
        return is_moving(path)

    monkeypatch.setattr(inputs, "is_moving", look)
    moving, path = _moving(engine, FileOptions()), tmp_path / "a.png"
    write_photo(path, Photo(np.zeros((6, 8, 3), np.uint8)))
    assert [moving.takes(path), moving.takes(path), len(looked)] == [False, False, 1]
    _animation(path)
    assert moving.takes(path)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the watch did not get there"
        time.sleep(0.02)


def test_a_watched_folder_takes_clips_and_animations_once(engine: Engine, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()

    def watch(until: Callable[[Watch], bool]) -> Watch:
        options = FileOptions(recursive=True)
        moving = _moving(engine, options, watching=True)
        watching = Watch([photos], out, engine, options=options, settle_s=0.05, stream=StringIO(), moving=moving)
        thread = threading.Thread(target=watching.run)
        thread.start()
        try:
            _wait_for(lambda: until(watching))
        finally:
            watching.stop()
            thread.join(PATIENCE_S)
        return watching

    _filled(photos / "moved")
    os.rename(photos / "moved", tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", photos, dirs_exist_ok=True)
    first = watch(lambda watching: watching.summary.count("done") == 7)
    assert first.summary.count("failed") == 0
    assert _names(out)[1:] == RESULTS  # after the lock
    shutil.copy(photos / "b.gif", photos / "new.gif")
    second = watch(lambda watching: watching.summary.count("done") == 1)
    assert [Path(file.source).name for file in second.summary.files] == ["new.gif"]


@pytest.mark.nightly
def test_a_watch_that_was_killed_goes_on_within_a_clip(tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    source = write_clip(photos / "a.mp4", Clip([moving_bar(index) for index in range(240)], uneven(240)))
    command = [sys.executable, "-m", "ray_sr.cli", "upscale", str(photos), "-o", str(out), "--watch"]
    command += ["-n", "bicubic", "-s", "2"]  # from the model's x4
    target = out / "a_x2.mp4"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _wait_for(lambda: bool(list((out / ".a_x2.mp4.segments").glob("0*.json"))) or target.exists())
    process.kill()
    process.wait()
    again = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _wait_for(lambda: (out / RECORD).exists() and "a_x2.mp4" in (out / RECORD).read_text())
    again.send_signal(2)
    told = again.communicate(timeout=PATIENCE_S)[1]
    assert "going on after" in told or "skipped" in told
    model = load_model("bicubic", scale=4)
    engine = Engine(model.module, model.capability)
    upscale_clip(source, tmp_path / "whole.mp4", engine, wanted=TargetSize(2), quiet=True)
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
