"""Folders as people have them: links, equal names, results of earlier runs, damaged photos beside good ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ray_sr.images import Photo, read_photo, write_photo
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions, Summary, upscale_files
from ray_sr.upscaling.record import RECORD, FileState, ResultRecord, is_marked, mark_xmp


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _save(path: Path, seed: int = 0, **fields: object) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels, **fields))  # type: ignore[arg-type]
    return path


def _run(engine: Engine, inputs: list[Path], output: Path | None, scale: float = 2, **options: object) -> Summary:
    choices = FileOptions(**options)  # type: ignore[arg-type]
    return upscale_files(inputs, output, engine, scale=scale, options=choices, quiet=True)


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return sorted(str(path.relative_to(folder)) for path in files)


@pytest.mark.parametrize("metadata", ["keep", "none"])
@pytest.mark.parametrize("place", ["beside", "the same folder", "a folder inside"])
def test_results_are_not_enlarged_by_a_run_with_other_options(
    engine: Engine, tmp_path: Path, place: str, metadata: str
) -> None:
    _save(tmp_path / "a.png"), _save(tmp_path / "b.jpg", 1)
    output = {"beside": None, "the same folder": tmp_path, "a folder inside": tmp_path / "large"}[place]
    _run(engine, [tmp_path], output, format="jpeg", metadata=metadata)
    for scale, format in [(2, "png"), (3, "tiff"), (2, "webp")]:
        again = _run(engine, [tmp_path], None, scale, format=format, recursive=True, metadata=metadata)
        assert [Path(file.source).name for file in again.files] == ["a.png", "b.jpg"]
        assert again.count("done") == 2
    assert not [name for name in _names(tmp_path) if name.count("_x") > 1]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_results_say_what_they_are_wherever_they_are_copied(engine: Engine, tmp_path: Path, format: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="x"/></rdf:RDF>'
    xmp += b"</x:xmpmeta>"
    _save(tmp_path / "in" / "a.png"), _save(tmp_path / "in" / "b.png", 1, xmp=xmp)
    _run(engine, [tmp_path / "in"], tmp_path / "out", format=format)
    assert b'dc:format="x"' in (read_photo(next((tmp_path / "out").glob("b_x2.*"))).xmp or b"")
    for path in (tmp_path / "out").glob("*_x2.*"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / path.name).write_bytes(path.read_bytes())
    _save(tmp_path / "elsewhere" / "new.png")
    again = _run(engine, [tmp_path / "elsewhere"], tmp_path / "further", 3)
    assert [Path(file.source).name for file in again.files] == ["new.png"]


def test_a_folder_of_results_alone_is_said_to_be_one_and_named_results_are_enlarged(
    engine: Engine, tmp_path: Path
) -> None:
    _run(engine, [_save(tmp_path / "a.png")], tmp_path / "out")
    refused = _run(engine, [tmp_path / "out"], tmp_path / "more")
    assert "results of earlier runs" in refused.files[0].reason
    assert refused.exit_code == 3
    assert _run(engine, [tmp_path / "out" / "a_x2.png"], tmp_path / "more").count("done") == 1


def test_a_photo_that_took_the_name_of_a_result_is_a_photo(engine: Engine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    _save(photos / "a.png")
    _run(engine, [photos], photos, metadata="none")
    _save(photos / "a_x2.png", 5)
    again = _run(engine, [photos], tmp_path / "out", 3)
    assert [Path(file.source).name for file in again.files] == ["a.png", "a_x2.png"]


def test_links_that_lead_nowhere_or_to_themselves_are_named_and_the_rest_is_done(
    engine: Engine, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photo = _save(photos / "a.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "notes").symlink_to("notes")
    (photos / "again").symlink_to(photos)
    (photos / "other.png").symlink_to(photo)
    summary = _run(engine, [photos], tmp_path / "out", recursive=True)
    told = {Path(file.source).name: file.reason for file in summary.files if file.status == "failed"}
    assert set(told) == {"loop.png", "gone.jpg"}
    assert "link" in told["loop.png"]
    assert "link" in told["gone.jpg"]
    assert _names(tmp_path / "out") == ["a_x2.png", "other_x2.png"]
    assert "link" in _run(engine, [photos / "loop.png"], tmp_path / "out").files[0].reason


def test_several_folders_keep_their_names(engine: Engine, tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        _save(tmp_path / year / "IMG_1.png", int(year))
    summary = _run(engine, [tmp_path / "2023", tmp_path / "2024"], tmp_path / "large")
    assert summary.count("done") == 2
    assert _names(tmp_path / "large") == ["2023/IMG_1_x2.png", "2024/IMG_1_x2.png"]
    again = _run(engine, [tmp_path / "2024", tmp_path / "2023"], tmp_path / "large", existing="skip")
    assert again.count("skipped") == 2


def test_files_of_several_folders_keep_what_they_differ_in_where_their_names_meet(
    engine: Engine, tmp_path: Path
) -> None:
    files = [_save(tmp_path / name) for name in ("2023/1.png", "2024/1.png", "2024/2.png")]
    assert _run(engine, files, tmp_path / "large").count("done") == 3
    assert _names(tmp_path / "large") == ["2023/1_x2.png", "2024/1_x2.png", "2_x2.png"]


def test_a_photo_that_is_named_twice_is_done_once(engine: Engine, tmp_path: Path) -> None:
    photo = _save(tmp_path / "a.png")
    here = Path(os.path.relpath(photo))
    summary = _run(engine, [photo, photo, here, tmp_path, tmp_path / "*.png"], tmp_path / "out")
    assert [file.status for file in summary.files] == ["done"]


def test_a_damaged_photo_does_not_stand_in_the_way_of_its_namesake(engine: Engine, tmp_path: Path) -> None:
    _save(tmp_path / "in" / "half.png")
    (tmp_path / "in" / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    for _ in range(2):
        summary = _run(engine, [tmp_path / "in"], tmp_path / "out", existing="skip")
        assert summary.count("failed") == 1
        assert _names(tmp_path / "out") == ["half_png_x2.png"]


def test_a_result_of_another_photo_is_not_taken_for_ones_own(engine: Engine, tmp_path: Path) -> None:
    first, second = _save(tmp_path / "1" / "a.png"), _save(tmp_path / "2" / "a.png", 1)
    _run(engine, [first], tmp_path / "out")
    assert "exists already" in _run(engine, [second], tmp_path / "out").files[0].reason
    summary = _run(engine, [second], tmp_path / "out", existing="skip")
    assert [file.target for file in summary.files] == [str(tmp_path / "out" / "a_png_x2.png")]
    assert summary.count("done") == 1


def test_a_record_with_a_torn_line_is_read_and_continued(tmp_path: Path) -> None:
    photos = [_save(tmp_path / f"{index}.png", index) for index in range(3)]
    results = [_save(tmp_path / f"{index}_x2.png", index + 9) for index in range(3)]
    record = ResultRecord(tmp_path)
    for photo, result in zip(photos[:2], results[:2], strict=True):
        state = FileState.of(photo)
        assert state is not None
        record.add(result, photo, state)
    path = tmp_path / RECORD
    path.write_bytes(path.read_bytes()[:-20] + b"\xff")
    torn = ResultRecord(tmp_path)
    assert [torn.holds(result) for result in results] == [True, False, False]
    state = FileState.of(photos[2])
    assert state is not None
    torn.add(results[2], photos[2], state)
    again = ResultRecord(tmp_path)
    assert [again.holds(result) for result in results] == [True, False, True]
    assert [again.has_done(*both) for both in zip(photos, [r.name for r in results], strict=True)] == [
        True,
        False,
        True,
    ]


def test_xmp_that_cannot_take_the_mark_stays_as_it_is(tmp_path: Path) -> None:
    for packet in (b"no xml at all", b"<rdf:RDF>" + b" " * 70_000 + b"</rdf:RDF>", "</rdf:RDF>".encode("utf-16")):
        assert mark_xmp(packet) == packet
    marked = mark_xmp(None)
    assert mark_xmp(marked) == marked
    (tmp_path / "short").write_bytes(b"")
    assert not is_marked(tmp_path / "short")
    assert not is_marked(tmp_path / "absent")
