"""Photographs of 16 bits: in shards, crops, degradations and validation; 8 bits stay what they were."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs as pafs
from pydantic import ValidationError
from skimage.metrics import peak_signal_noise_ratio

from ray_sr.data.batches import local_batches, ray_data_batches
from ray_sr.data.checking import damaged_shards, describe, sub_image_sheet
from ray_sr.data.crops import CropPlan, SubImage, Visit, make_crops
from ray_sr.data.encoding import decode_pixels, encode_pixels
from ray_sr.data.manifest import Cutting, Encoding, Manifest, read_manifest, write_manifest
from ray_sr.data.pixels import StoredPixels, open_pixels, read_index
from ray_sr.data.shards import Group, prepare, write_shard
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import BatchStream
from ray_sr.data.sub_images import probe, read_and_cut
from ray_sr.degradations import degrade
from ray_sr.images import decode, read_photo
from ray_sr.images.resample import downscale_array, upscale_array
from ray_sr.models import build_generator
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training.compute import Compute
from ray_sr.training.launch import train
from ray_sr.training.runs import Run
from ray_sr.training.validation import Validator
from tests.photos import noise, real_photos
from tests.test_cli import run

CUTTING = Cutting(depth=16, sub_image=96, step=96, minimum=64)
RECIPE = parse_recipe(
    "{name: deep, scale: 2, data: {crop: 32, batch: 4, crops_per_image: 2, cache: memory}, "
    "generator: {kind: compact, convs: 1, channels: 8}, pretrain: {steps: 2}, "
    "validation: {every: 2, photos: 2}, training: {cpus_per_worker: 1, precision: fp32}}"
)


def gradient(height: int = 128, width: int = 160) -> np.ndarray:
    """uint16 H×W×3 with hundreds of levels within four of 8 bits: rounded to those, it would be stripes."""
    ramp = 20000 + np.arange(height)[:, None] * 7.0 + np.arange(width)[None] * 0.5
    return np.stack([ramp, ramp + 40, 2 * ramp], axis=-1).astype(np.uint16)


def save16(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of 16 bits in colour and gray, and of 8: what they should become. The folder is under ""."""
    folder = tmp_path_factory.mktemp("deep") / "photos"
    deep, gray = gradient(), gradient()[..., 0]
    small = real_photos()["coffee"][100:228, 200:360]
    save16(folder / "deep.png", deep)
    save16(folder / "gray.tiff", gray)
    Image.fromarray(small).save(folder / "small.png")
    save16(folder / "held.png", gradient(100, 100)[::-1])
    return {
        "deep.png": deep,
        "gray.tiff": gray[..., None].repeat(3, 2),
        "small.png": small * np.uint16(257),
        "held.png": gradient(100, 100)[::-1],
        "": np.array(str(folder)),
    }


@pytest.fixture(scope="module")
def shards(photos: dict[str, np.ndarray]) -> str:
    """As `prepare` makes them, without its tasks."""
    folder = str(photos[""])
    output = Path(folder).parent / "shards"
    output.mkdir()
    made, records = [], []
    for group in groups(folder):
        shard, of_photos = write_shard(group, str(output), CUTTING)
        made.append(shard)
        records += of_photos
    manifest = Manifest(cutting=CUTTING, photos={"train": 3, "validation": 1}, left_out=0, shards=made)
    write_manifest(pafs.LocalFileSystem(), str(output), manifest, records)
    return str(output)


def groups(folder: str) -> list[Group]:
    found = find_photos([folder])
    held = [photo for photo in found if photo.name == "held.png"]
    rest = [photo for photo in found if photo.name != "held.png"]
    return [
        Group("train-00000-000000000000.parquet", "train", tuple(rest)),
        Group("validation-00000-000000000000.parquet", "validation", tuple(held)),
    ]


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_encodings_keep_16_bits(encoding: Encoding) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (37, 53, 3), np.uint16)
    data = encode_pixels(pixels, encoding)
    found = decode_pixels(data, encoding, 37, 53, 16)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, pixels)
    for damaged in (b"", data[: len(data) // 2], encode_pixels(noise(37, 53), encoding)):
        with pytest.raises((ValueError, OSError)):
            decode_pixels(damaged, encoding, 37, 53, 16)


def test_rows_hold_every_bit_and_8_bits_times_257(shards: str, photos: dict[str, np.ndarray]) -> None:
    seen = set()
    manifest = read_manifest(shards)
    assert manifest.cutting.encoding == "raw"
    for shard in manifest.shards:
        for row in pq.read_table(f"{shards}/{shard.file}").to_pylist():
            top, left, height, width = (row[name] for name in ("top", "left", "height", "width"))
            pixels = decode_pixels(row["image"], "raw", height, width, 16)
            whole = photos[row["photo"]]
            np.testing.assert_array_equal(pixels, whole[top : top + height, left : left + width])
            seen.add(row["photo"])
    assert seen == {"deep.png", "gray.tiff", "small.png", "held.png"}
    read = [read_and_cut(photo, "train", CUTTING)[0] for photo in find_photos([str(photos[""])])]
    depths = {record["name"]: record["depth"] for record in read}
    assert depths == {"deep.png": 16, "gray.tiff": 16, "held.png": 16, "small.png": 8}


def test_they_are_checked_described_and_made_again_only_where_missing(
    shards: str, photos: dict[str, np.ndarray]
) -> None:
    manifest = read_manifest(shards)
    assert damaged_shards(shards, manifest) == {}
    facts, text = describe(shards)
    assert facts["cutting"]["depth"] == 16
    assert "as raw of 16 bits" in text
    sub_image_sheet(shards, f"{shards}/../sheet.png")
    assert read_photo(f"{shards}/../sheet.png").depth == 8
    there, gone = (Path(shards) / shard.file for shard in manifest.shards)
    written, data = there.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    again = [write_shard(group, shards, CUTTING)[0] for group in groups(str(photos[""]))]
    assert again == manifest.shards
    assert there.stat().st_mtime_ns == written
    gone.write_bytes(data[:-9] + b"damage!!!")
    assert list(damaged_shards(shards, manifest)) == [gone.name]
    gone.write_bytes(data)


@pytest.mark.parametrize(
    "degradation",
    ["[{kind: downscale}]", "[{kind: blur, sigma: [0.5, 1]}, {kind: downscale, method: area}]"],
)
def test_crops_and_their_lr_have_more_than_256_levels(shards: str, degradation: str) -> None:
    recipe = parse_recipe(RECIPE.model_dump_json(), [f"degradation={degradation}", "data.crop=64"])
    index = read_index(shards, "train", 64)
    assert index.bytes == 2 * 3 * int((index.height.astype(int) * index.width).sum())
    plan = CropPlan.of(recipe)
    lr, hr = BatchStream(index, StoredPixels(index), plan, 8).batches([0])
    assert lr.dtype == hr.dtype == np.uint16
    deep = [number for number, crop in enumerate(hr[0]) if (crop % 257).any()]  # of the gradients
    assert deep
    for number in deep:
        assert len(np.unique(hr[0, number])) > 256
        assert len(np.unique(lr[0, number])) > 256
        small = hr[0, number].reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(lr[0, number][8:-8, 8:-8] - small[8:-8, 8:-8]).max() < 3  # straight ramps stay what they are


def test_bicubic_is_matlabs_within_rounding_at_16_bits() -> None:
    crops = np.random.default_rng(1).integers(20000, 45000, (3, 48, 48, 3), np.uint16)  # nothing is clipped
    plan = CropPlan.of(parse_recipe(RECIPE.model_dump_json(), ["data.crop=48"]))
    lr = degrade(crops, plan.degradation, 2, [])
    for small, large in zip(lr, crops, strict=True):
        assert np.abs(downscale_array(large, 2).astype(int) - small).max() <= 1


def test_codecs_have_8_bits_and_noise_has_all() -> None:
    crops = np.stack([gradient(64, 64)] * 2)
    steps = parse_recipe(
        RECIPE.model_dump_json(), ["degradation=[{kind: downscale}, {kind: jpeg, quality: [90, 90]}]"]
    ).degradation
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    coded = degrade(crops, steps, 2, rngs)
    assert coded.dtype == np.uint16
    assert (coded % 257 == 0).all()
    noisy = parse_recipe(
        RECIPE.model_dump_json(), ["degradation=[{kind: downscale}, {kind: noise, sigma: [0.2, 0.2], gaussian: 1}]"]
    ).degradation
    found = degrade(crops, noisy, 2, [np.random.default_rng(seed) for seed in range(2)])
    added = found.astype(int) - downscale_array(crops[0], 2)
    assert added.std() == pytest.approx(0.2 * 257, rel=0.1)


def test_8_bits_times_257_give_the_lr_of_8_bits_times_257() -> None:
    """Within what is rounded: half a level of 8 bits."""
    image = real_photos()["astronaut"][:96, :96]
    plan = CropPlan.of(parse_recipe(RECIPE.model_dump_json(), ["degradation=[{kind: second_order}]"]))
    visit = [Visit(7, 1, 96, 96)]
    lr8, hr8 = make_crops(visit, [SubImage(image)], plan)
    lr16, hr16 = make_crops(visit, [SubImage(image * np.uint16(257))], plan)
    np.testing.assert_array_equal(hr16, hr8 * np.uint16(257))
    assert np.abs(lr16.astype(int) - lr8.astype(int) * 257).max() <= 257


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_networks_see_all_levels(layout: torch.memory_format) -> None:
    compute = Compute(torch.device("cpu"), None, layout)
    pixels = gradient()[None]
    found = compute.to_input(torch.from_numpy(pixels))
    expected = torch.from_numpy(pixels.astype(np.float64) / 65535).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=0)


def validator(shards: str) -> Validator:
    return Validator(RECIPE, Compute(torch.device("cpu"), None, torch.contiguous_format), shards, 0, 1)


def test_validation_measures_8_bits_of_what_16_bits_give(shards: str) -> None:
    found = validator(shards)
    ((lr, hr),) = found.pairs
    assert (lr.dtype, hr.dtype) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(hr, np.rint(gradient(100, 100)[::-1] / 257))
    assert len(np.unique(lr)) > 256
    metrics, sample = found.run(build_generator(RECIPE.network).eval())
    assert np.isfinite(list(metrics.values())).all()
    assert decode(sample).depth == 8
    bicubic = np.rint(upscale_array(lr, 2) / 257)[2:-2, 2:-2]
    assert metrics["bicubic_psnr_rgb"] == pytest.approx(
        peak_signal_noise_ratio(hr[2:-2, 2:-2], bicubic.astype(np.uint8)), abs=0.01
    )


def test_a_run_on_ray(photos: dict[str, np.ndarray], shards: str, ray_local: None, tmp_path: Path) -> None:
    """Prepared by tasks, cut in every place to the same rows, trained on and validated."""
    output = str(tmp_path / "shards")
    made = prepare(find_photos([str(photos[""])]), output, cutting=CUTTING, hold_out=["held.png"])
    assert made.manifest.rows("train") == read_manifest(shards).rows("train")
    index = read_index(output, "train", 32)
    plan = CropPlan.of(RECIPE)
    here = list(local_batches(BatchStream(index, open_pixels(index, "memory"), plan, 2, "worker"), range(3)))
    tasks = BatchStream(index, open_pixels(index, "stream"), plan, 2, "tasks")
    for one, other in zip(here, ray_data_batches(tasks, range(3)), strict=True):
        assert one.lr.dtype == one.hr.dtype == torch.uint16
        assert torch.equal(one.lr.int(), other.lr.int())
        assert torch.equal(one.hr.int(), other.hr.int())
    trained = train(RECIPE, Run.at(tmp_path / "run"), shards=output)
    assert trained.metrics["bicubic_psnr_y"] == pytest.approx(validator(output).bicubic[0][0])
    assert np.isfinite(trained.metrics["psnr_y"])


def test_copies_of_held_out_photos_are_known_in_either_depth(tmp_path: Path) -> None:
    image = real_photos()["chelsea"][:80, :80]
    Image.fromarray(image).save(tmp_path / "a.png")
    save16(tmp_path / "b.png", image * np.uint16(257) + np.uint16(60))
    first, second = find_photos([str(tmp_path)])
    digest = probe(first, CUTTING)[0]
    assert digest == probe(first, Cutting(minimum=64))[0]
    record, rows = read_and_cut(second, "train", CUTTING, {digest: "a.png"})
    assert not rows
    assert record["reason"] == "the same pixels as the held-out photo a.png"


def test_of_8_bits_nothing_is_written_otherwise_than_before() -> None:
    """Names of shards follow from this, and older versions refuse keys that they do not know."""
    assert list(Cutting().model_dump()) == [
        *("sub_image", "step", "minimum", "encoding", "drop_flat", "drop_duplicates", "input_scale")
    ]
    assert Cutting.model_validate(Cutting().model_dump()).depth == 8
    deep = Cutting(depth=16, encoding="png")
    assert Cutting.model_validate_json(deep.model_dump_json()) == deep
    with pytest.raises(ValidationError, match="encoding webp has 8 bits: take png or raw"):
        Cutting(depth=16, encoding="webp")


def test_the_command_refuses_webp_and_says_where_16_bits_are_in_vain(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        Image.fromarray(noise(70, 70, number)).save(tmp_path / f"{number}.png")
    options = ("data", "prepare", f"{tmp_path}/*.png", "-o", str(tmp_path / "shards"), "--minimum", "64")
    code, _, err = run(*options, "--depth", "16", "--encoding", "webp", capsys=capsys)
    assert code == 2
    assert "encoding webp has 8 bits" in err
    assert not (tmp_path / "shards").exists()
    code, out, err = run(*options, "--depth", "16", "--encoding", "png", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["sub_images"] == 1
    assert "no photo has more than 8 bits" in err
    assert read_manifest(str(tmp_path / "shards")).cutting.depth == 16
