"""Watched folders: each photo once, whole, over restarts and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.images import Photo, encode, read_photo, write_photo
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.files import FileOptions
from ray_sr.upscaling.record import RECORD
from ray_sr.upscaling.watching import Watch

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _bytes(seed: int, side: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encode(Photo(pixels))


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the watch did not get there"
        time.sleep(0.02)


@contextmanager
def _watching(engine: Engine, folder: Path, output: Path, **options: object) -> Iterator[Watch]:
    choices = FileOptions(**options)  # type: ignore[arg-type]
    watch = Watch([folder], output, engine, options=choices, settle_s=0.05, stream=StringIO())
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_photos_are_taken_when_they_are_whole(engine: Engine, tmp_path: Path) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    data = _bytes(1, 64)
    with _watching(engine, photos, output) as watch, open(photos / "slow.png", "wb", buffering=0) as file:
        for piece in range(0, len(data), len(data) // 40):
            file.write(data[piece : piece + len(data) // 40])
            time.sleep(0.01)
        _wait_for((output / "slow_x2.png").exists)
        _wait_for(lambda: watch.summary.count("done") == 1)
        assert watch.summary.count("failed") == 0
    expected = upscale_photo(read_photo(photos / "slow.png"), engine).pixels
    assert np.array_equal(read_photo(output / "slow_x2.png").pixels, expected)


def test_a_damaged_photo_is_tried_again_when_it_changes_and_not_before(engine: Engine, tmp_path: Path) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with _watching(engine, photos, output) as watch:
        _wait_for(lambda: watch.summary.count("failed") == 1)
        (photos / "b.png").write_bytes(_bytes(2))
        _wait_for((output / "b_x2.png").exists)
        (photos / "a.png").write_bytes(_bytes(3))
        _wait_for((output / "a_x2.png").exists)
    assert watch.summary.count("failed") == 0


def test_what_is_done_is_not_done_again_by_a_restart_even_where_the_result_was_taken_away(
    engine: Engine, tmp_path: Path
) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    (photos / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "a.webp", "deep/a.png")):
        write_photo(photos / name, Photo(np.full((5, 6, 3), 40 * index, np.uint8)))
    with _watching(engine, photos, output, recursive=True) as watch:
        _wait_for(lambda: watch.summary.count("done") == 3)
    assert (output / "a_webp_x2.png").exists()
    (output / "a_x2.png").unlink()
    shutil.copy(photos / "a.png", photos / "new.png")
    with _watching(engine, photos, output, recursive=True) as watch:
        _wait_for((output / "new_x2.png").exists)
    assert [Path(file.source).name for file in watch.summary.files] == ["new.png"]
    os.utime(photos / "a.png", ns=(1, 1))  # the photo is another one now
    with _watching(engine, photos, output, recursive=True) as watch:
        _wait_for((output / "a_x2.png").exists)


def test_another_scale_into_the_same_folder_is_another_result(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_bytes(0))
    with _watching(engine, tmp_path, tmp_path):
        _wait_for((tmp_path / "a_x2.png").exists)
    with _watching(engine, tmp_path, tmp_path, suffix="_large", format="jpeg") as watch:
        _wait_for((tmp_path / "a_large.jpg").exists)
    assert len(watch.summary.files) == 1


def test_what_cannot_be_watched_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_bytes(0))
    with pytest.raises(InputError, match="is no folder"):
        Watch([tmp_path / "a.png"], tmp_path / "out", engine)
    with pytest.raises(RecipeError, match="unknown picture format"):
        Watch([tmp_path], tmp_path / "out", engine, options=FileOptions(format="gif"))
    with _watching(engine, tmp_path, tmp_path / "out"):
        _wait_for((tmp_path / "out" / "a_x2.png").exists)
        with pytest.raises(ResourceError, match="in use by another process"):
            Watch([tmp_path], tmp_path / "out", engine).run()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RecipeError, match="a file and no folder"):
        Watch([tmp_path], tmp_path / "taken", engine).run()


def _drop(folder: Path, count: int) -> None:
    """Writes photos into the folder, each in two pieces, some by a rename."""
    for index in range(count):
        data = _bytes(index)
        name = folder / f"{index:03}.png"
        if index % 3:
            with open(name, "wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                time.sleep(0.002)
                file.write(data[len(data) // 2 :])
        else:
            (folder / f".{index}.part").write_bytes(data)
            (folder / f".{index}.part").rename(name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.nightly)])
def test_many_photos_and_two_kills_give_as_many_results_none_twice(tmp_path: Path, count: int) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    command = [sys.executable, "-m", "ray_sr.cli", "upscale", str(photos), "-o", str(output)]
    command += ["-n", "bicubic", "-s", "2", "--watch"]
    written: dict[str, tuple[int, int]] = {}

    def look() -> int:
        states = {path.name: path.stat() for path in output.glob("*_x2.png")}
        for name, state in states.items():
            assert written.setdefault(name, (state.st_ino, state.st_mtime_ns)) == (state.st_ino, state.st_mtime_ns)
        return len(states)

    dropper = threading.Thread(target=_drop, args=(photos, count))
    dropper.start()
    for enough, last in ((count // 5, signal.SIGKILL), (count // 2, signal.SIGKILL), (count, signal.SIGINT)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _wait_for(lambda enough=enough: look() >= enough)  # type: ignore[misc]
            if last == signal.SIGINT:
                _wait_for(lambda: len((output / RECORD).read_bytes().splitlines()) >= count)
        finally:
            process.send_signal(last)
            process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (-signal.SIGKILL, 130)
    dropper.join()
    assert look() == count
    owners = Counter(json.loads(line)["source"] for line in (output / RECORD).read_bytes().splitlines())
    assert set(owners.values()) == {1}
    assert len(owners) == count
    assert {path.name for path in output.iterdir() if path.suffix == ".png"} == set(written)
    for index in (0, count // 2, count - 1):
        assert read_photo(output / f"{index:03}_x2.png").width == 16
