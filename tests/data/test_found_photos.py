"""What a folder of photographs holds beside photographs, and which photos are held out of training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sr.data.encoding import decode_pixels
from ray_sr.data.manifest import Cutting, Manifest
from ray_sr.data.pairs import find_pairs
from ray_sr.data.shards import Prepared, prepare
from ray_sr.data.sources import PassedOver, find_photos
from ray_sr.errors import InputError
from tests.photos import noise

CUTTING = Cutting(sub_image=64, step=64, minimum=48)


def write(path: Path, seed: int = 0, side: int = 64, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(side, side, seed)).save(path, **options)  # type: ignore[arg-type]
    return path


def names(folder: Path) -> list[str]:
    return [photo.name for photo in find_photos([str(folder)])]


@pytest.mark.parametrize(
    "place", [".thumbnails/a.png", "in/.cache/b/a.png", "@eaDir/a.png", "in/@eaDir/a.png/SYNOPHOTO.jpg", "._b.png"]
)
def test_hidden_and_system_folders_are_no_photos(place: str, tmp_path: Path) -> None:
    write(tmp_path / "mine.png")
    write(tmp_path / place)
    assert names(tmp_path) == ["mine.png"]


def to_parent(folder: Path) -> None:
    (folder / "in" / "up").symlink_to("..")


def to_itself(folder: Path) -> None:
    (folder / "in" / "self").symlink_to(folder / "in")


def two_in_a_circle(folder: Path) -> None:
    (folder / "x").mkdir()
    (folder / "x" / "to").symlink_to(folder / "in")
    (folder / "in" / "back").symlink_to(folder / "x")


@pytest.mark.parametrize("link", [to_parent, to_itself, two_in_a_circle], ids=lambda link: link.__name__)
def test_links_between_folders_count_no_photo_twice(link: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "in" / "b.png")
    link(tmp_path)
    assert names(tmp_path) == ["a.png", "in/b.png"]


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.png")
    write(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "photos") == ["a.png", "more/b.png"]


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "scan.bmp")
    write(tmp_path / "anim.GIF")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "old").symlink_to("nowhere")
    shutil.copy(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    passed_over: list[PassedOver] = []
    assert [photo.name for photo in find_photos([str(tmp_path)], passed_over)] == ["a.png"]
    found = {Path(one.path).name: one.lost for one in passed_over}
    assert found == {
        "scan.bmp": False,
        "anim.GIF": False,
        "gone.jpg": True,
        "loop.png": True,
        "caf\\xe9.png": True,
    }
    assert all(str(one).isprintable() for one in passed_over)


def kept(made: Prepared, split: str) -> set[str]:
    return {photo["name"] for photo in made.photos if photo["split"] == split and not photo["reason"]}


def rows(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    found = {}
    for shard in manifest.shards:
        for row in pq.read_table(folder / shard.file).to_pylist():
            found[row["photo"]] = decode_pixels(row["image"], "webp", row["height"], row["width"])
    return found


@pytest.mark.usefixtures("ray_local")
def test_shards_below_the_photos_are_no_photos(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", number)
    first = prepare(find_photos([str(tmp_path)]), str(tmp_path / "shards"), cutting=CUTTING)
    second = prepare(find_photos([str(tmp_path)]), str(tmp_path / "shards"), cutting=CUTTING)
    assert first.manifest == second.manifest
    (tmp_path / "shards" / "manifest.json").unlink()  # as after a run that was killed
    assert names(tmp_path) == ["0.png", "1.png", "2.png"]


@pytest.mark.usefixtures("ray_local")
def test_a_photo_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    """Same name, same bytes in size; with and without its old time; the others' shards stay as they are."""
    shards, photos = tmp_path / "shards", tmp_path / "photos"
    options = {"compression": None}
    for number in range(2):
        write(photos / f"{number}.tif", number, **options)

    def made() -> dict[str, np.ndarray]:
        found = prepare(find_photos([str(photos)]), str(shards), cutting=CUTTING, validation=0)
        return rows(shards, found.manifest)

    made()
    for seed, keep_time in ((7, False), (8, True)):
        target = photos / "1.tif"
        before = target.stat()
        write(tmp_path / "new.tif", seed, **options)
        if keep_time:
            os.utime(tmp_path / "new.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "new.tif").replace(target)
        assert target.stat().st_size == before.st_size
        np.testing.assert_array_equal(made()["1.tif"], noise(64, 64, seed))
    times = {file: file.stat().st_mtime_ns for file in shards.glob("train-*")}
    (photos / "0.tif").touch()
    made()
    assert {file: file.stat().st_mtime_ns for file in shards.glob("train-*")} == times


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("suffix", [".png", ".webp"], ids=["equal files", "equal pixels"])
def test_a_copy_of_a_held_out_photo_is_not_trained_on(suffix: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(3):
        write(photos / f"{number}.png", number)
    write(photos / f"copy{suffix}", 1, lossless=True)
    cutting = CUTTING.model_copy(update={"drop_duplicates": True})
    made = prepare(find_photos([str(photos)]), str(tmp_path / "shards"), cutting=cutting, hold_out=["1.png"])
    assert kept(made, "validation") == {"1.png"}
    assert kept(made, "train") == {"0.png", "2.png"}
    assert [photo["reason"] for photo in made.left_out] == ["the same pixels as the held-out photo 1.png"]
    drawn = prepare(find_photos([str(photos)]), str(tmp_path / "drawn"), cutting=cutting, validation=0.5)
    train, validation = ({"1.png" if name.startswith("copy") else name for name in kept(drawn, split)}
                         for split in ("train", "validation"))  # fmt: skip
    assert train
    assert validation
    assert not train & validation


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("good", [1, 2, 5])
def test_photos_are_held_out_among_those_that_can_be_used(good: int, tmp_path: Path) -> None:
    """Whatever the hash of the names says, one is held out and one is left to train on where there are two."""
    for number in range(good):
        write(tmp_path / f"good{number}.png", number)
    for number in range(12):
        (tmp_path / f"bad{number}.png").write_text("no picture")
    write(tmp_path / "small.png", 99, side=20)
    made = prepare(find_photos([str(tmp_path)]), str(tmp_path / "shards"), cutting=CUTTING)
    assert made.manifest.photos["validation"] == (1 if good > 1 else 0)
    assert made.manifest.photos["train"] == max(1, good - 1)
    assert made.manifest.left_out == 13
    with pytest.raises(InputError, match=r"--hold-out bad1\.png: cannot be held out: "):
        prepare(find_photos([str(tmp_path)]), str(tmp_path / "x"), cutting=CUTTING, hold_out=["bad1.png"])


@pytest.mark.usefixtures("ray_local")
def test_photos_of_one_name_have_no_input_photos(tmp_path: Path) -> None:
    """Of two folders, or of two formats: both would get the same partner."""
    for folder, seed in (("a", 0), ("b", 1)):
        write(tmp_path / folder / "001.png", seed)
    write(tmp_path / "c" / "001.png")
    write(tmp_path / "c" / "001.webp", 1)
    write(tmp_path / "inputs" / "001.png", 2)
    cutting = CUTTING.model_copy(update={"input_scale": 1})
    for places in (["a", "b"], ["c"]):
        photos = find_photos([str(tmp_path / place) for place in places])
        with pytest.raises(InputError, match="several photos are called 001: which input photo is whose"):
            prepare(photos, str(tmp_path / "shards"), cutting=cutting, inputs=str(tmp_path / "inputs"))
    found, left_out = find_pairs(tmp_path / "c", tmp_path / "inputs", 1)
    assert not found
    assert {one.reason for one in left_out} == {"several photos have this name: give them different ones"}


@pytest.mark.parametrize(
    ("hr", "lr", "expected"),
    [
        ("box2", "box2x4", "box2x4"),
        ("box2 box3", "box2x4 box3x4", "box2x4"),
        ("bo box2", "box4 box2x4", "box2x4"),
        ("box2", "box3x4", None),
        ("bax2", "bax3", None),
        ("baby", "babyx4", "babyx4"),
        ("baby_HR", "baby_LR_x4", "baby_LR_x4"),
        ("img_001_SRF_4_HR", "img_001_SRF_4_LR", "img_001_SRF_4_LR"),
        ("0801", "0801x2 0801x4", "0801x4"),
        ("a_HR", "a_LRBI_x4", "a_LRBI_x4"),
        ("a_gt a", "a_lr", None),
    ],
)
def test_lr_files_are_found_by_what_their_names_add(hr: str, lr: str, expected: str | None, tmp_path: Path) -> None:
    for side, listed in (("hr", hr), ("lr", lr)):
        for name in listed.split():
            write(tmp_path / side / f"{name}.png")
    found, _ = find_pairs(tmp_path / "hr", tmp_path / "lr", 4)
    wanted = hr.split()[-1] if "bo " in hr else hr.split()[0]
    partner = {pair.hr.name: pair.lr and pair.lr.name for pair in found}.get(f"{wanted}.png")
    assert partner == (expected and f"{expected}.png")
