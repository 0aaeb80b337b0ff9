"""Names of pictures: what is taken from folders, what is passed over, and which names a result can have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_sr.cli import main
from ray_sr.errors import RecipeError
from ray_sr.upscaling.finding import passed_over
from ray_sr.upscaling.naming import plan_jobs
from ray_sr.upscaling.results import Summary
from ray_sr.video.inputs import plan_moving
from tests.image_files import JPEG


def test_suffixes_of_today_are_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    taken = ["a.jfif", "b.JPE", "c.mpo", "d.HEIC", "e.heif", "f.avif", "g.jxl", "h.apng"]
    others = ["i.gif", "j.psd", "k.txt"]
    for name in (*taken, *others, ".hidden.gif"):
        (tmp_path / name).write_bytes(JPEG)
    jobs = plan_jobs([tmp_path], tmp_path / "out", suffix="_x2")
    assert [job.source.name for job in jobs] == taken
    found = passed_over([tmp_path], False, tmp_path / "out")
    assert [path.name for path in found] == others
    os.mkfifo(tmp_path / "pipe.png")
    assert [job.source.name for job in plan_jobs([tmp_path], tmp_path / "out", suffix="_x2")] == taken
    assert [path.name for path in passed_over([tmp_path], False, tmp_path / "out")] == [*others, "pipe.png"]
    summary = Summary((), 1.0, tuple(map(str, found)))
    assert "3 passed over" in str(summary)
    assert all(name in str(summary) for name in others)
    assert len(summary.to_dict()["passed_over"]) == 3


@pytest.mark.parametrize("ending", ["heic", "heif", "mpo", "tga", "gif", "bmp", "PSD", "jp2"])
def test_a_name_that_cannot_be_written_is_no_folder(tmp_path: Path, ending: str) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(JPEG)
    with pytest.raises(RecipeError, match=r"must end in one of .*\.avif"):
        plan_jobs([photo], tmp_path / f"big.{ending}")
    (tmp_path / f"there.{ending}").mkdir()
    assert plan_jobs([photo], tmp_path / f"there.{ending}")[0].problem is None


@pytest.mark.parametrize(
    ("ending", "format"),
    [("jfif", "jpeg"), ("jpe", "jpeg"), ("apng", "png"), ("AVIF", "avif"), ("jxl", "jxl"), ("tif", "tiff")],
)
def test_the_name_gives_the_format_and_another_one_is_an_error(tmp_path: Path, ending: str, format: str) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(JPEG)
    target = tmp_path / f"big.{ending}"
    assert [(job.target, job.format) for job in plan_jobs([photo], target)] == [(target, format)]
    assert plan_jobs([photo], target, format=format)[0].problem is None
    with pytest.raises(RecipeError, match=format):
        plan_jobs([photo], target, format="webp")


@pytest.mark.parametrize("name", ["big.zip", "big.TAR", "big.tar.gz", "big.7z"])
def test_an_archive_is_no_folder(tmp_path: Path, name: str) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(JPEG)
    with pytest.raises(RecipeError, match=r"archives are not written: name a folder"):
        plan_jobs([photo], tmp_path / name)
    with pytest.raises(RecipeError, match=r"cannot be written as that"):
        plan_moving(["clip.mp4"], str(tmp_path / name), "_x2", None)
    (tmp_path / name).mkdir()
    assert plan_jobs([photo], tmp_path / name)[0].problem is None


def test_a_photo_beside_a_folder_keeps_its_own_folder_where_names_meet(tmp_path: Path) -> None:
    for name in ("2023/a.jpg", "2023/b.jpg", "2024/a.jpg", "2025/06/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)

    def results(*names: str) -> list[str]:
        jobs = plan_jobs([tmp_path / name for name in names], tmp_path / "out", suffix="_x2")
        assert all(job.problem is None for job in jobs)
        return [str(job.target.relative_to(tmp_path / "out")) for job in jobs if job.target]

    assert results("2023", "2024/a.jpg") == ["a_x2.png", "b_x2.png", "2024/a_x2.png"]
    assert results("2024/a.jpg", "2023") == ["2024/a_x2.png", "a_x2.png", "b_x2.png"]
    assert results("2023", "2025/06/c.jpg") == ["a_x2.png", "b_x2.png", "c_x2.png"]
    assert results("2023", "2024", "2024/a.jpg") == ["2023/a_x2.png", "2023/b_x2.png", "2024/a_x2.png"]
    assert results("2023", "2023/a.jpg") == ["a_x2.png", "b_x2.png"]


@pytest.mark.parametrize("name", ["two\nlines", "red\x1b[31m", "back\rover", "\u202efdp", os.fsdecode(b"caf\xe9")])
def test_a_name_that_moves_the_cursor_is_written_out(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{name}.jpg").write_bytes(JPEG)
    (tmp_path / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        main(["upscale", str(tmp_path), "-n", "bicubic", "-o", str(tmp_path / name / "out")])
    out, err = capfd.readouterr()
    assert ended.value.code == 3
    written = ascii(name)[1:-1]
    assert all(line.isprintable() for line in (out + err).splitlines())
    assert sum(written in line and f"{written}.jpg -> " in line for line in err.splitlines()) == 1
    assert sum(f"{written}.png: " in line for line in err.splitlines()) == 1
