"""Files and folders: names, conflicts, failures that do not stop the rest, results that are whole or absent."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sr.errors import RecipeError
from ray_sr.images import Photo, encode, read_photo, write_photo
from ray_sr.models import Bicubic, Capability, Generator
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.files import FileOptions, _ahead, upscale_files
from ray_sr.upscaling.progress import ProgressReport
from ray_sr.upscaling.record import RECORD
from ray_sr.upscaling.results import FileResult, Summary


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _save(path: Path, height: int = 12, width: int = 15, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
    return path


def _names(folder: Path) -> list[str]:
    """All files below the folder, hidden ones too, without the record of results."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return sorted(str(path.relative_to(folder)) for path in files)


def _run(engine: Engine, inputs: list[Path], output: Path | None, **options: object) -> Summary:
    return upscale_files(inputs, output, engine, options=FileOptions(**options), quiet=True)  # type: ignore[arg-type]


def test_one_photo_into_a_file_or_a_folder_or_beside_it(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "in" / "ä photo.png")
    expected = upscale_photo(read_photo(photo), engine).pixels
    summary = _run(engine, [photo], tmp_path / "new" / "result.webp", lossless=True)
    assert summary.exit_code == 0
    assert np.array_equal(read_photo(tmp_path / "new" / "result.webp").pixels, expected)
    _run(engine, [photo], tmp_path / "folder", format="tiff")
    assert np.array_equal(read_photo(tmp_path / "folder" / "ä photo_x2.tif").pixels, expected)
    _run(engine, [photo], None)
    assert np.array_equal(read_photo(tmp_path / "in" / "ä photo_x2.png").pixels, expected)


def test_a_folder_named_like_a_picture_is_a_folder(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png")
    (tmp_path / "out.png").mkdir()
    _run(engine, [photo], tmp_path / "out.png")
    assert _names(tmp_path / "out.png") == ["a_x2.png"]


def test_folders_keep_their_structure_and_globs_are_expanded(engine: Engine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/er/c.tif", ".hidden.png", "deep/.cache/d.png"):
        _save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    flat = _run(engine, [photos], tmp_path / "flat", suffix="")
    assert [Path(file.source).name for file in flat.files] == ["a.PNG", "b.jpg"]
    assert _names(tmp_path / "flat") == ["a.png", "b.png"]
    _run(engine, [photos], tmp_path / "all", recursive=True, format="jpeg")
    assert _names(tmp_path / "all") == ["a_x2.jpg", "b_x2.jpg", "deep/er/c_x2.jpg"]
    _run(engine, [photos / "*.jpg"], tmp_path / "glob")
    assert _names(tmp_path / "glob") == ["b_x2.png"]


def test_a_bad_file_is_named_and_the_others_go_on(engine: Engine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for index in range(6):
        _save(photos / f"{index}.png", seed=index)
    good = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(good[: len(good) // 2])
    (photos / "4.png").write_text("not a picture")
    summary = _run(engine, [photos, tmp_path / "missing.png"], tmp_path / "out")
    assert [file.status for file in summary.files] == ["done"] * 2 + ["failed", "done", "failed", "done", "failed"]
    assert summary.exit_code == 3
    reasons = {Path(file.source).name: file.reason for file in summary.files if file.status == "failed"}
    assert set(reasons) == {"2.png", "4.png", "missing.png"}
    assert all(reason and "\n" not in reason and "2.png" not in reason for reason in reasons.values())
    assert _names(tmp_path / "out") == [f"{index}_x2.png" for index in (0, 1, 3, 5)]


def test_an_empty_folder_is_said_to_be_empty(engine: Engine, tmp_path: Path) -> None:
    summary = _run(engine, [tmp_path], tmp_path / "out")
    assert summary.exit_code == 3
    assert "no picture" in summary.files[0].reason


def test_a_network_that_fails_on_one_photo_spares_the_others(tmp_path: Path) -> None:
    class Moody(Generator):
        capability = Capability(1, 3, 1, 0, False, False)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch / (batch.amax() < 0.999)

    model = Moody()
    for index, level in enumerate((100, 255, 200)):
        write_photo(tmp_path / f"{index}.png", Photo(np.full((9, 9, 3), level, np.uint8)))
    summary = _run(Engine(model, model.capability), [tmp_path], tmp_path / "out")
    assert [file.status for file in summary.files] == ["done", "failed", "done"]
    assert "not finite" in summary.files[1].reason


def test_nothing_is_overwritten_unasked(engine: Engine, tmp_path: Path) -> None:
    first, second = _save(tmp_path / "a.png"), _save(tmp_path / "b.png")
    old = tmp_path / "out" / "a_x2.png"
    old.parent.mkdir()
    old.write_bytes(b"precious")
    refused = _run(engine, [first, second], tmp_path / "out")
    assert [file.status for file in refused.files] == ["failed", "done"]
    assert "exists already" in refused.files[0].reason
    assert old.read_bytes() == b"precious"
    skipped = _run(engine, [first, second], tmp_path / "out", existing="skip")
    assert [file.status for file in skipped.files] == ["skipped", "skipped"]
    assert skipped.exit_code == 0
    assert old.read_bytes() == b"precious"
    assert _run(engine, [first], tmp_path / "out", existing="overwrite").count("done") == 1
    assert read_photo(old).width == 30


def test_sources_are_never_replaced_even_when_overwriting(engine: Engine, tmp_path: Path) -> None:
    first, second = _save(tmp_path / "a.png"), _save(tmp_path / "a_x2.png", seed=1)
    before = [first.read_bytes(), second.read_bytes()]
    same = _run(engine, [first], None, suffix="", existing="overwrite")
    other = _run(engine, [first, second], None, existing="overwrite")
    assert "would replace the photo" in same.files[0].reason
    assert [file.status for file in other.files] == ["failed", "done"]
    assert [first.read_bytes(), second.read_bytes()] == before


def test_two_photos_with_one_name_do_not_end_in_one_file(engine: Engine, tmp_path: Path) -> None:
    _save(tmp_path / "in" / "a.jpg"), _save(tmp_path / "in" / "a.png", seed=1)
    summary = _run(engine, [tmp_path / "in"], tmp_path / "out", existing="overwrite")
    assert [file.status for file in summary.files] == ["done", "done"]
    assert _names(tmp_path / "out") == ["a_png_x2.png", "a_x2.png"]


def test_a_second_run_does_not_upscale_the_results_of_the_first(engine: Engine, tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    _run(engine, [tmp_path], None)
    _run(engine, [tmp_path], tmp_path / "inside", recursive=True)
    again = _run(engine, [tmp_path], None, existing="skip")
    inside = _run(engine, [tmp_path], tmp_path / "inside", recursive=True, suffix="_new")
    assert [file.status for file in again.files] == ["skipped"]
    assert [Path(file.source) for file in inside.files] == [tmp_path / "a.png"]


def test_options_that_do_not_fit_are_refused(engine: Engine, tmp_path: Path) -> None:
    photos = [_save(tmp_path / "a.png"), _save(tmp_path / "b.png")]
    with pytest.raises(RecipeError, match="names one file, but there are 2 photos"):
        _run(engine, photos, tmp_path / "out.png")
    with pytest.raises(RecipeError, match="unknown picture format 'gif'"):
        _run(engine, photos, tmp_path / "out", format="gif")
    with pytest.raises(RecipeError, match="cannot hold /"):
        _run(engine, photos, tmp_path / "out", suffix="/../x")
    for inputs, output, words in [
        ([""], "out", "empty name"),
        (["a.png"], "", "empty name"),
        (["s3://bucket/a"], "out", "add --ray"),
        (["a.png"], "s3://bucket/out", "add --ray"),
        (["a.png"], "out.gif", "must end in one of"),
    ]:
        with pytest.raises(RecipeError, match=words):
            upscale_files(inputs, output, engine, quiet=True)
    assert not (tmp_path / "out").exists()


def test_names_that_no_filesystem_takes_are_failures_with_a_reason(engine: Engine, tmp_path: Path) -> None:
    photo, long = _save(tmp_path / "a.png"), "x" * 300
    assert _run(engine, [tmp_path / long], None).files[0].reason == "File name too long"
    for output, suffix in [(long, ""), (f"{long}.png", ""), ("out", long)]:
        summary = _run(engine, [photo], tmp_path / output, suffix=suffix)
        assert "too long" in summary.files[0].reason
    assert [path for path in _names(tmp_path) if "part" in path] == []


def test_sides_beyond_all_formats_are_refused_before_the_work(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png")
    summary = upscale_files([photo], tmp_path / "out", engine, scale=1e9, quiet=True)
    assert "10000000 a side of png" in summary.files[0].reason


def test_results_too_large_for_their_format_are_refused_before_the_work(tmp_path: Path) -> None:
    class Untouchable(Bicubic):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            assert batch.shape[-1] < 100, "the network has been run"
            return super().forward(batch)

    photo = _save(tmp_path / "wide.png", 1, 5000)
    model = Untouchable(4)
    summary = _run(Engine(model, model.capability), [photo], tmp_path / "out.webp")
    assert "16383" in summary.files[0].reason


def test_a_dry_run_says_all_and_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png")
    summary = upscale_files([photo, tmp_path / "no.png"], tmp_path / "out", engine, dry_run=True)
    assert [file.status for file in summary.files] == ["planned", "failed"]
    assert summary.files[0].target == str(tmp_path / "out" / "a_x2.png")
    assert not (tmp_path / "out").exists()


def test_the_summary_is_json_and_counts_what_was_written(engine: Engine, tmp_path: Path) -> None:
    transparent = Photo(np.full((10, 20, 3), 9, np.uint8), alpha=np.full((10, 20), 9, np.uint8))
    (tmp_path / "a.png").write_bytes(encode(transparent))
    summary = upscale_files(
        [tmp_path / "a.png"], tmp_path, engine, scale=3, options=FileOptions(format="jpeg"), quiet=True
    )
    shown = json.loads(json.dumps(summary.to_dict()))
    assert shown["done"] == 1
    assert shown["megapixels"] == pytest.approx(30 * 60 / 1e6)
    file = shown["files"][0]
    assert (file["width"], file["height"], file["warnings"]) == (60, 30, ["alpha-flattened"])
    assert file["target"] == str(tmp_path / "a_x3.jpg")


def test_an_unwritable_place_is_a_failure_with_its_reason(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png")
    (tmp_path / "taken").write_text("a file")
    summary = _run(engine, [photo], tmp_path / "taken" / "out")
    assert summary.files[0].status == "failed"
    assert "taken" in summary.files[0].reason


def test_a_stage_runs_only_a_little_ahead_of_the_next() -> None:
    taken = []

    def items() -> Iterator[int]:
        for index in range(50):
            taken.append(index)
            yield index

    with ThreadPoolExecutor(2) as pool:
        squares = _ahead(pool, lambda value: value * value, items())
        assert next(squares) == 0
        assert len(taken) == 3
        assert list(squares) == [index * index for index in range(1, 50)]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _report(stream: io.StringIO, quiet: bool) -> str:
    report = ProgressReport(2, stream, quiet)
    report.advance(0.5)
    report.next()
    report.finish(FileResult("a.png", "b.png", "done", "", 2000, 1000, 1.5))
    report.next()
    report.finish(FileResult("c.png", None, "failed", "is broken"))
    report.close()
    return stream.getvalue()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    lines = _report(io.StringIO(), quiet=False).splitlines()
    assert lines == ["a.png -> b.png 2000x1000 in 1.5 s", "c.png: is broken"]
    assert _report(io.StringIO(), quiet=True).splitlines() == ["c.png: is broken"]
    bar = _report(_Terminal(), quiet=False)
    assert " 25%" in bar
    assert "Mpx/s" in bar
    assert "c.png: is broken" in bar


KILLED = """
    import os, signal, sys
    from ray_sr.models import Bicubic
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.files import upscale_files

    rename, renamed = os.replace, []

    def replace(source, target):
        if len(renamed) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed.append(target)
        rename(source, target)

    os.replace = replace
    model = Bicubic(2)
    upscale_files([sys.argv[1]], sys.argv[2], Engine(model, model.capability))
"""


def test_a_killed_run_leaves_whole_results_and_is_finished_by_the_next(engine: Engine, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for index in range(5):
        _save(photos / f"{index}.png", seed=index)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(photos), str(out)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    visible = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert len(visible) == 2
    assert all(read_photo(path).width == 30 for path in visible)
    summary = _run(engine, [photos], out, existing="skip")
    assert (summary.count("skipped"), summary.count("done"), summary.exit_code) == (2, 3, 0)
    assert all(read_photo(out / f"{index}_x2.png").width == 30 for index in range(5))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
