"""Archives on a real Ray: the same results as one photo gives, failures named, killed jobs gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs as pafs

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.images import Photo, PhotoError, encode, read_photo, write_photo
from ray_sr.storage import open_filesystem
from ray_sr.store import load_model
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.files import FileOptions, upscale_files
from ray_sr.upscaling.on_ray import MANIFEST, upscale_archive
from ray_sr.upscaling.results import Summary
from ray_sr.upscaling.target_size import TargetSize

MODEL = load_model("bicubic", scale=2)


def _save(path: Path, seed: int = 0, height: int = 12, width: int = 15) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
    return path


def _upscale(places: list[str], output: str | Path, **options: object) -> Summary:
    chosen = FileOptions(**options)  # type: ignore[arg-type]
    return upscale_archive(places, str(output), MODEL, options=chosen, workers=1, quiet=True)


def _manifest(folder: Path) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """What results were made with, and each photo's line by its target or source."""
    head, *lines = map(json.loads, (folder / MANIFEST).read_text().splitlines())
    return head["made_with"], {line["target"] or line["source"]: line for line in lines}


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("ray_local")
def test_an_archive_is_upscaled_as_each_photo_is(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for index in range(9):
        _save(photos / f"{index}.png", index)
    _save(photos / "deep" / "ä photo.jpg", 20)
    (photos / "broken.png").write_bytes((photos / "0.png").read_bytes()[:60])
    table = pa.table(
        {"name": ["p", "q"], "image": [encode(Photo(np.full((5, 6, 3), v, np.uint8))) for v in (3, 4)]}
    )
    pq.write_table(table, tmp_path / "more.parquet")
    summary = _upscale([str(photos), str(tmp_path / "nowhere"), str(tmp_path / "more.parquet")], out)
    made_with, lines = _manifest(out)
    expected = [*(f"{index}_x2.png" for index in range(9)), "deep/ä photo_x2.png", MANIFEST]
    assert _names(out) == sorted([*expected, "more/p_x2.png", "more/q_x2.png"])
    assert (summary.count("done"), summary.count("failed"), summary.exit_code) == (12, 2, 3)
    assert made_with["model"] == "bicubic@built-in"
    assert lines["broken_x2.png"]["status"] == "failed"
    with pytest.raises(PhotoError, match="cut short") as alone:
        read_photo(photos / "broken.png")
    assert f"{photos / 'broken.png'}: {lines['broken_x2.png']['reason']}" == str(alone.value)
    assert "no such file" in str(lines[str(tmp_path / "nowhere")]["reason"])
    assert (lines["deep/ä photo_x2.png"]["width"], lines["deep/ä photo_x2.png"]["height"]) == (30, 24)
    engine = Engine(MODEL.module, MODEL.capability)
    for name in ("3", "deep/ä photo"):
        source = next(photos.glob(f"{name}.*"))
        assert np.array_equal(
            read_photo(out / f"{name}_x2.png").pixels, upscale_photo(read_photo(source), engine).pixels
        )


@pytest.mark.usefixtures("ray_local")
def test_a_bucket_is_upscaled_into_a_bucket(tmp_path: Path, s3: str) -> None:
    for index in range(3):
        _save(tmp_path / "photos" / f"{index}.png", index)
    bucket = f"{s3}/{tmp_path.name}"
    filesystem, folder = open_filesystem(bucket)
    pafs.copy_files(str(tmp_path / "photos"), f"{folder}/photos", destination_filesystem=filesystem)
    filesystem.open_output_stream(f"{folder}/photos/broken.png").close()
    assert _upscale([f"{bucket}/photos"], f"{bucket}/out").exit_code == 3
    again = _upscale([f"{bucket}/photos"], f"{bucket}/out")
    assert sorted(file.status for file in again.files) == ["failed", "skipped", "skipped", "skipped"]
    (tmp_path / "out").mkdir()
    pafs.copy_files(f"{folder}/out", str(tmp_path / "out"), source_filesystem=filesystem)
    assert _names(tmp_path / "out") == ["0_x2.png", "1_x2.png", "2_x2.png", MANIFEST]
    engine = Engine(MODEL.module, MODEL.capability)
    expected = upscale_photo(read_photo(tmp_path / "photos" / "2.png"), engine)
    assert np.array_equal(read_photo(tmp_path / "out" / "2_x2.png").pixels, expected.pixels)


@pytest.mark.usefixtures("ray_local")
def test_a_second_run_does_what_is_missing(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for index in range(3):
        _save(photos / f"{index}.png", index)
    _upscale([str(photos)], out)
    (out / "1_x2.png").unlink()
    (out / ".1_x2.png.0123abcd.tmp").write_bytes(b"half")
    (out / ".0123456789abcdef.part").write_bytes(b"half")
    kept = (out / "0_x2.png").stat().st_mtime_ns
    _save(photos / "new.png", 9)
    again = _upscale([str(photos)], out)
    assert sorted((Path(f.source).name, f.status) for f in again.files) == [
        ("0.png", "skipped"),
        ("1.png", "done"),
        ("2.png", "skipped"),
        ("new.png", "done"),
    ]
    assert (out / "0_x2.png").stat().st_mtime_ns == kept
    assert _names(out) == ["0_x2.png", "1_x2.png", "2_x2.png", MANIFEST, "new_x2.png"]
    _, lines = _manifest(out)
    assert [line["status"] for line in lines.values()] == ["done"] * 4
    assert all(line["width"] == 30 for line in lines.values()), "of earlier runs, too"


@pytest.mark.usefixtures("ray_local")
def test_results_beside_their_photos_are_no_photos_of_the_next_run(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    _upscale([str(tmp_path)], tmp_path)
    again = _upscale([str(tmp_path)], tmp_path)
    assert [file.status for file in again.files] == ["skipped"]


@pytest.mark.usefixtures("ray_local")
def test_any_filesystem_will_do_and_huge_results_too(tmp_path: Path) -> None:
    """A file:// URI through fsspec is treated as a bucket is: fetched, upscaled, sent."""
    photo = _save(tmp_path / "photos" / "deep" / "a.png")
    summary = _upscale(
        [f"fsspec+file://{tmp_path}/photos"], f"fsspec+file://{tmp_path}/out", in_memory=0, format="tiff"
    )
    assert summary.exit_code == 0, summary.files
    assert _names(tmp_path / "out") == ["deep/a_x2.tif", MANIFEST]
    expected = upscale_photo(read_photo(photo), Engine(MODEL.module, MODEL.capability)).pixels
    assert np.array_equal(read_photo(tmp_path / "out" / "deep" / "a_x2.tif").pixels, expected)


def test_results_of_other_options_are_not_mixed(tmp_path: Path) -> None:
    _save(tmp_path / "photos" / "a.png")
    (tmp_path / "out").mkdir()
    head = {"made_with": {"model": "other@1", "scale": 2}}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(head) + "\n")
    with pytest.raises(RecipeError, match=r"made otherwise.*model other@1 not bicubic@built-in"):
        _upscale([str(tmp_path / "photos")], tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text("a note of mine")
    with pytest.raises(InputError, match="no manifest of ours"):
        _upscale([str(tmp_path / "photos")], tmp_path / "out")


def test_names_that_make_no_archive_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="results go into a folder"):
        _upscale([str(tmp_path)], tmp_path / "out.png")
    with pytest.raises(RecipeError, match="cannot hold /"):
        _upscale([str(tmp_path)], tmp_path / "out", suffix="/../x")
    with pytest.raises(InputError, match="cannot open this storage"):
        _upscale([str(tmp_path)], "nonsense://bucket/out")
    assert _names(tmp_path) == ["a.png"]


def test_two_photos_of_one_name_and_a_dry_run(tmp_path: Path) -> None:
    _save(tmp_path / "one" / "a.png"), _save(tmp_path / "two" / "a.jpg", 1)
    stray = tmp_path / "out" / ".0123456789abcdef.part"
    stray.parent.mkdir()
    stray.write_bytes(b"half")
    summary = upscale_archive(
        [str(tmp_path / "one"), str(tmp_path / "two")],
        str(tmp_path / "out"),
        MODEL,
        wanted=TargetSize(width=99),
        dry_run=True,
    )
    assert [file.status for file in summary.files] == ["planned", "planned"]
    assert {file.target for file in summary.files} == {"a_99w.png", "two/a_99w.png"}
    assert _names(tmp_path / "out") == [stray.name]


@pytest.mark.usefixtures("ray_local")
def test_a_device_that_the_cluster_lacks_is_named(tmp_path: Path) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this Ray has a GPU")
    _save(tmp_path / "a.png")
    with pytest.raises(ResourceError, match="no GPU"):
        upscale_archive(
            [str(tmp_path)], str(tmp_path / "out"), MODEL, engine_options={"device": "cuda"}, quiet=True
        )


KILLED = """
    import sys
    from ray_sr.upscaling.on_ray import upscale_archive
    from ray_sr.cluster import local_ray
    from ray_sr.store import load_model

    local_ray(cpus=2, object_store_bytes=1 << 28)
    print("begins", flush=True)
    upscale_archive([sys.argv[1]], sys.argv[2], load_model("bicubic", scale=2), workers=1, quiet=True)
"""


@pytest.mark.usefixtures("ray_local")
def test_a_killed_job_is_finished_by_the_next(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    first = _save(photos / "00.png", 0, 400, 400)
    for index in range(1, 60):
        (photos / f"{index:02d}.png").write_bytes(first.read_bytes())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(photos), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while len(list(out.glob("*_x2.png"))) < 3:
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail("the job ended before it could be killed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert len(list(out.glob("*_x2.png"))) < 60
    assert _manifest(out)[0]["model"] == "bicubic@built-in"
    summary = _upscale([str(photos)], out)
    assert summary.exit_code == 0
    assert summary.count("skipped") >= 3
    assert _names(out) == sorted([*(f"{index:02d}_x2.png" for index in range(60)), MANIFEST])
    assert all(read_photo(path).width == 800 for path in out.glob("*.png"))
    _, lines = _manifest(out)
    assert len(lines) == 60
    assert {line["status"] for line in lines.values()} == {"done"}


def _planned(places: list[Path], output: Path) -> dict[str, str | None]:
    summary = upscale_archive([str(place) for place in places], str(output), MODEL, dry_run=True)
    assert summary.count("failed") == 0
    return {file.source: file.target for file in summary.files}


def test_equal_names_part_and_results_of_other_runs_are_no_photos(tmp_path: Path) -> None:
    first, second = _save(tmp_path / "2023" / "a.png"), _save(tmp_path / "2024" / "a.png", 1)
    twin = tmp_path / "2024" / "a.jpg"
    write_photo(twin, Photo(np.zeros((4, 4, 3), np.uint8)))
    planned = _planned([tmp_path / "2023", tmp_path / "2024"], tmp_path / "out")
    assert set(planned.values()) == {"a_x2.png", "2024/a_x2.png", "2024/a_png_x2.png"}
    engine = Engine(MODEL.module, MODEL.capability)
    upscale_files([tmp_path / "2023"], tmp_path / "2023" / "large", engine, quiet=True)
    assert set(_planned([tmp_path / "2023"], tmp_path / "other")) == {str(first)}
    result = tmp_path / "2023" / "large" / "a_x2.png"
    assert set(_planned([result, second], tmp_path / "other")) == {str(result), str(second)}
