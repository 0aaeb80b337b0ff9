"""Photographs to shards, on a real Ray."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sr.data.checking import damaged_shards, describe
from ray_sr.data.encoding import decode_pixels, encode_pixels
from ray_sr.data.manifest import Cutting, Encoding, read_manifest, read_photos
from ray_sr.data.shards import Group, prepare, write_shard
from ray_sr.data.sources import PhotoFile, find_photos
from ray_sr.data.sub_images import sub_images
from ray_sr.errors import InputError, ResourceError
from tests.photos import noise, write_real_photos

CUTTING = Cutting(sub_image=128, step=96, minimum=64)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_real_photos(tmp_path / "фото")


@pytest.mark.parametrize("encoding", ["webp", "png", "raw"])
def test_encodings_are_lossless(encoding: Encoding) -> None:
    pixels = noise(37, 53)
    np.testing.assert_array_equal(decode_pixels(encode_pixels(pixels, encoding), encoding, 37, 53), pixels)


@pytest.mark.parametrize(("height", "width"), [(480, 480), (481, 480), (720, 1000), (100, 2000), (479, 333)])
def test_sub_images_cover_every_pixel_and_stay_inside(height: int, width: int) -> None:
    seen = np.zeros((height, width), bool)
    for top, left, h, w in sub_images(height, width, Cutting()):
        assert top + h <= height
        assert left + w <= width
        assert (h, w) == (min(480, height), min(480, width))
        seen[top : top + h, left : left + w] = True
    assert seen.all()


@pytest.mark.usefixtures("ray_local")
def test_rows_hold_the_pixels_of_their_photos(photos: Path, tmp_path: Path) -> None:
    made = prepare(find_photos([str(photos)]), str(tmp_path / "shards"), cutting=CUTTING, hold_out=["coffee.png"])
    assert made.manifest.photos == {"train": 3, "validation": 1}
    assert read_manifest(str(tmp_path / "shards")) == made.manifest
    for shard in made.manifest.shards:
        for row in pq.read_table(tmp_path / "shards" / shard.file).to_pylist():
            whole = np.asarray(Image.open(photos / row["photo"]))
            expected = whole[row["top"] : row["top"] + row["height"], row["left"] : row["left"] + row["width"]]
            pixels = decode_pixels(row["image"], "webp", row["height"], row["width"])
            np.testing.assert_array_equal(pixels, expected)
            assert (row["photo"] == "coffee.png") == (shard.split == "validation")
            if shard.split == "validation":
                assert pixels.shape == whole.shape
    records = {record["name"]: record for record in read_photos(str(tmp_path / "shards"))}
    assert records["coffee.png"]["sha256"] == hashlib.sha256((photos / "coffee.png").read_bytes()).hexdigest()


@pytest.mark.usefixtures("ray_local")
def test_bad_photos_are_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    good = (photos / "coffee.png").read_bytes()
    (photos / "truncated.png").write_bytes(good[: len(good) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("this is no picture")
    Image.fromarray(noise(20, 400)).save(photos / "small.png")
    Image.fromarray(noise(100, 100)[..., 0]).save(photos / "gray.png")
    (photos / "notes.txt").write_text("not looked at")
    made = prepare(find_photos([str(photos)]), str(tmp_path / "shards"), cutting=CUTTING)
    reasons = {photo["name"]: photo["reason"] for photo in made.left_out}
    assert reasons.keys() == {"truncated.png", "empty.jpg", "text.png", "small.png"}
    assert reasons["small.png"] == "too small: 400x20, the smaller side must be 64 or more"
    assert all("\n" not in reason for reason in reasons.values())
    assert sum(made.manifest.photos.values()) == 5
    facts, text = describe(str(tmp_path / "shards"))
    assert facts["left_out"] == reasons
    assert "too small" in text


@pytest.mark.usefixtures("ray_local")
def test_nothing_usable_is_an_error_and_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(InputError, match="none of the 2 photos"):
        prepare(find_photos([str(tmp_path)]), str(tmp_path / "shards"))
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_photos([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="no photos here"):
        find_photos([str(tmp_path)])
    with pytest.raises(InputError, match="cannot open this storage"):
        find_photos(["gopher://host/photos"])


def test_globs_and_files_are_found_once_in_a_fixed_order(photos: Path) -> None:
    found = find_photos([f"{photos}/*o*.png", f"{photos}/coffee.png", f"{photos}/**/chelsea.png"])
    assert [photo.name for photo in found] == ["astronaut.png", "chelsea.png", "coffee.png", "rocket.png"]


def test_output_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot make this folder"):
        prepare(find_photos([str(photos)]), str(tmp_path / "file" / "shards"))


def test_a_shard_that_fails_halfway_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    group = Group("train-00000-000000000000.parquet", "train", tuple(find_photos([str(photos)])))
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(ResourceError, match=r"cannot write this shard: No space left on device"):
            write_shard(group, str(mounted), CUTTING)
        assert list(mounted.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.usefixtures("ray_local")
def test_a_second_run_makes_only_what_is_missing(photos: Path, tmp_path: Path) -> None:
    def run() -> dict[str, tuple[int, int]]:
        prepare(find_photos([str(photos)]), str(tmp_path / "shards"), cutting=CUTTING)
        return {file.name: (file.stat().st_ino, file.stat().st_size) for file in shards.glob("train-*")}

    shards = tmp_path / "shards"
    first = run()
    victim = sorted(first)[0]
    (shards / victim).unlink()
    (shards / f".{victim}.0123abcd.tmp").write_bytes(b"half")
    (shards / "mine.txt").write_text("kept")
    second = run()
    assert {name for name in first if first[name] != second[name]} <= {victim}
    assert first.keys() == second.keys()
    assert not list(shards.glob(".*.tmp"))
    assert (shards / "mine.txt").exists()


@pytest.mark.usefixtures("ray_local")
def test_damage_is_named(photos: Path, tmp_path: Path) -> None:
    manifest = prepare(find_photos([str(photos)]), str(tmp_path / "shards"), cutting=CUTTING).manifest
    assert damaged_shards(str(tmp_path / "shards"), manifest) == {}
    flipped, cut = (tmp_path / "shards" / shard.file for shard in manifest.shards[:2])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-10])
    damage = damaged_shards(str(tmp_path / "shards"), manifest)
    assert damage.keys() == {flipped.name, cut.name}
    assert "SHA-256" in damage[flipped.name]


def test_a_folder_that_is_no_shard_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json here"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="not a manifest of this version"):
        read_manifest(str(tmp_path))


def test_a_killed_task_leaves_no_shard(photos: Path, tmp_path: Path) -> None:
    """SIGKILL while a shard is being written: a reader sees nothing, and the next try makes it whole."""
    many = [PhotoFile(photo.uri, photo.name, photo.size) for photo in find_photos([str(photos)])] * 40
    group = Group("train-00000-000000000000.parquet", "train", tuple(many))
    code = (
        "import pickle, sys; from ray_sr.data.shards import write_shard;"
        "write_shard(*pickle.loads(bytes.fromhex(sys.argv[1])))"
    )
    import pickle

    argument = pickle.dumps((group, str(tmp_path), CUTTING)).hex()
    process = subprocess.Popen([sys.executable, "-c", code, argument])
    while process.poll() is None and not list(tmp_path.glob(".train-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("train-*"))
    shard, records = write_shard(group, str(tmp_path), CUTTING)
    assert len(records) == len(many)
    assert shard.rows == sum(record["rows"] for record in records)
