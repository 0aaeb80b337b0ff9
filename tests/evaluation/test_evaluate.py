"""Benchmark tables against independent metrics, published figures, and folders as users have them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ray_sr.errors import InputError, ModelError, RecipeError, ResourceError
from ray_sr.evaluation import evaluate, self_check
from ray_sr.evaluation.pictures import PANEL, Panel, most_detailed, side_by_side
from ray_sr.evaluation.self_check import CheckRow
from ray_sr.evaluation.table import COLUMNS
from ray_sr.images.resample import downscale_array, upscale_array
from ray_sr.metrics import sharpness
from ray_sr.models import Bicubic, build_generator
from ray_sr.perceptual.vgg import load_feature_network, vgg19_feature_distance
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.store import Model, load_model
from tests.photos import real_photos
from tests.shared_data import shared_folder


def crop(name: str, side: int = 120, top: int = 60, left: int = 160) -> np.ndarray:
    return np.ascontiguousarray(real_photos()[name][top : top + side, left : left + side])


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def untrained(scale: int = 4) -> Model:
    torch.manual_seed(0)
    module = build_generator(NetworkSpec(scale=scale, generator=CompactSpec(convs=2, channels=8))).eval()
    return Model("untrained", "0123456789ab", module.network, module, module.capability)


def unchanged() -> Model:
    """A x1 model that gives its input back."""
    module = Bicubic(1).eval()
    return Model("unchanged", "none", None, module, module.capability)


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    """Two colour photos whose sides are no multiples of 4, and a gray one."""
    save(tmp_path / "hr" / "astronaut.png", crop("astronaut")[:119, :117])
    save(tmp_path / "hr" / "coffee.png", crop("coffee"))
    save(tmp_path / "hr" / "gray.png", crop("chelsea")[..., 1])
    return tmp_path / "hr"


def figures_by_skimage(output: np.ndarray, hr: np.ndarray, border: int) -> dict[str, float]:
    inner = np.s_[border : hr.shape[0] - border, border : hr.shape[1] - border]
    output, hr = output[inner], hr[inner]
    ours, theirs = (rgb2ycbcr(photo)[..., 0] if photo.ndim == 3 else photo.astype(float) for photo in (output, hr))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    maps = structural_similarity(ours, theirs, full=True, **options)[1][5:-5, 5:-5]
    return {
        "psnr_y": peak_signal_noise_ratio(theirs, ours, data_range=255),
        "ssim_y": float(maps.mean()),
        "psnr_rgb": peak_signal_noise_ratio(hr, output, data_range=255),
    }


class TestFigures:
    def test_agree_with_scikit_image_for_model_and_baseline(self, hr: Path) -> None:
        model = untrained()
        found = {image.name: image for image in evaluate(model, hr).images}
        assert sorted(found) == ["astronaut.png", "coffee.png", "gray.png"]
        for name, image in found.items():
            pixels = np.asarray(Image.open(hr / name))
            pixels = pixels[: pixels.shape[0] // 4 * 4, : pixels.shape[1] // 4 * 4]
            lr = downscale_array(pixels, 4)
            expected = figures_by_skimage(upscale_array(lr, 4), pixels, 4)
            assert {key: image.baseline[key] for key in expected} == pytest.approx(expected, abs=1e-4)
            if pixels.ndim == 3:
                batch = torch.from_numpy(lr / np.float32(255)).permute(2, 0, 1)[None]
                with torch.inference_mode():
                    output = model.module(batch)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()
                expected = figures_by_skimage(output, pixels, 4)
                assert {key: image.figures[key] for key in expected} == pytest.approx(expected, abs=2e-3)

    def test_gray_photos_are_measured_as_gray(self, hr: Path) -> None:
        gray = next(image for image in evaluate(untrained(), hr).images if image.name == "gray.png")
        assert gray.figures["psnr_y"] == gray.figures["psnr_rgb"]
        assert gray.baseline["ssim_y"] == gray.baseline["ssim_rgb"]

    def test_sharpness_is_compared_with_hr_at_every_scale(self, hr: Path) -> None:
        found = next(
            image for image in evaluate(load_model("bicubic", scale=4), hr).images if "coffee" in image.name
        )
        pixels = crop("coffee")
        blurred = upscale_array(downscale_array(pixels, 4), 4)
        assert found.baseline["sharpness_ratio"] == pytest.approx(sharpness(blurred) / sharpness(pixels))
        assert found.figures["sharpness_ratio"] == pytest.approx(found.baseline["sharpness_ratio"], rel=0.02)

    def test_mean_is_that_of_the_photos(self, hr: Path) -> None:
        found = evaluate(untrained(), hr)
        for name in ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"):
            assert found.mean[name] == pytest.approx(np.mean([image.figures[name] for image in found.images]))
            assert found.bicubic[name] == pytest.approx(np.mean([image.baseline[name] for image in found.images]))

    def test_the_model_bicubic_equals_the_baseline_but_for_rounding(self, hr: Path) -> None:
        found = evaluate(load_model("bicubic", scale=2), hr)
        assert found.mean["psnr_y"] == pytest.approx(found.bicubic["psnr_y"], abs=0.02)

    def test_16_bit_photos_are_measured_as_8_bit(self, tmp_path: Path) -> None:
        gray = crop("coffee")[..., 0]
        save(tmp_path / "eight" / "a.png", gray)
        save(tmp_path / "sixteen" / "a.png", gray.astype(np.uint16) * 257)
        eight, sixteen = (evaluate(untrained(), tmp_path / name).images for name in ("eight", "sixteen"))
        assert eight == sixteen

    def test_feature_distance_where_its_network_is_given(self, hr: Path) -> None:
        network = load_feature_network("random", ["conv3_4"])
        found = evaluate(load_model("bicubic", scale=4), hr, features=network, limit=1)
        pixels = np.asarray(Image.open(hr / "astronaut.png"))[:116, :116]
        blurred = upscale_array(downscale_array(pixels, 4), 4)
        photos = [torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None] for photo in (blurred, pixels)]
        expected = float(vgg19_feature_distance(*photos, network))
        assert found.bicubic["vgg19_conv3_4"] == pytest.approx(expected, rel=1e-4)
        assert "VGG19 conv3_4" in found.table()
        assert "not LPIPS" in found.protocol


class TestDeblurring:
    def test_measures_whole_photos_and_sharpness(self, tmp_path: Path) -> None:
        sharp = [crop("coffee"), crop("astronaut")]
        blurred = [upscale_array(downscale_array(photo, 2), 2) for photo in sharp]
        for number in range(2):
            save(tmp_path / "hr" / f"{number}.png", sharp[number])
            save(tmp_path / "lr" / f"{number}.png", blurred[number])
        found = evaluate(unchanged(), tmp_path / "hr", tmp_path / "lr")
        assert found.baseline_name == "input"
        assert "border 0 px" in found.protocol
        assert found.images[0].figures == pytest.approx(found.images[0].baseline)
        assert found.images[0].figures["psnr_y"] == pytest.approx(
            figures_by_skimage(blurred[0], sharp[0], 0)["psnr_y"], abs=1e-4
        )
        before, after = (sum(map(sharpness, photos)) / 2 for photos in (sharp, blurred))
        assert found.mean["sharpness"] == pytest.approx(after)
        assert found.mean["sharpness_ratio"] == pytest.approx(after / before)
        assert found.mean["sharpness_ratio"] < 1

    def test_the_table_ends_with_system_es_line(self, tmp_path: Path) -> None:
        sharp = crop("coffee")
        blurred = upscale_array(downscale_array(sharp, 2), 2)
        save(tmp_path / "hr" / "a.png", sharp)
        save(tmp_path / "lr" / "a.png", blurred)
        before, after = sharpness(sharp), sharpness(blurred)
        share = f"{after:.1f} ({after / before:.1%})"
        line = f"mean sharpness: input {share}, model {share} of HR's {before:.1f}"
        assert evaluate(unchanged(), tmp_path / "hr", tmp_path / "lr").table().splitlines()[-1] == line

    def test_equal_photos_are_infinite_in_the_table_and_null_in_json(self, tmp_path: Path) -> None:
        for side in ("hr", "lr"):
            save(tmp_path / side / "a.png", crop("coffee"))
        found = evaluate(unchanged(), tmp_path / "hr", tmp_path / "lr")
        assert math.isinf(found.mean["psnr_y"])
        mean = next(line for line in found.table().splitlines() if line.startswith("mean "))
        assert mean.split()[1:3] == ["inf", "inf"]
        report = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert report["mean"]["psnr_y"] is None
        assert report["mean"]["ssim_y"] == 1.0

    def test_input_of_another_size_is_not_measured(self, tmp_path: Path) -> None:
        for name in ("same", "other"):
            save(tmp_path / "hr" / f"{name}.png", crop("coffee"))
        save(tmp_path / "lr" / "same.png", crop("coffee"))
        save(tmp_path / "lr" / "other.png", crop("coffee")[:, :119])
        found = evaluate(unchanged(), tmp_path / "hr", tmp_path / "lr")
        assert [photo.name for photo in found.left_out] == ["other.png"]

    def test_needs_input_photos(self, hr: Path) -> None:
        with pytest.raises(RecipeError, match="--lr"):
            evaluate(unchanged(), hr)


class TestLrFolder:
    @pytest.mark.parametrize("pattern", ["{}", "{}x4", "{}_x4", "{}_LRBI_x4", "{}_LR", "{}_SRF_4_LR"])
    def test_same_figures_as_made_lr_whatever_the_naming(self, hr: Path, tmp_path: Path, pattern: str) -> None:
        for file in hr.iterdir():
            pixels = np.asarray(Image.open(file))
            pixels = pixels[: pixels.shape[0] // 4 * 4, : pixels.shape[1] // 4 * 4]
            save(tmp_path / "lr" / f"{pattern.format(file.stem)}.png", downscale_array(pixels, 4))
        given = evaluate(untrained(), hr, tmp_path / "lr")
        assert given.images == evaluate(untrained(), hr).images
        assert "given photos" in given.protocol
        assert given.left_out == []

    def test_hr_name_endings_and_the_asked_scale_count(self, tmp_path: Path) -> None:
        pixels = crop("coffee")
        save(tmp_path / "hr" / "img_001_HR.png", pixels)
        for scale in (2, 4):
            save(tmp_path / "lr" / f"img_001_LR_x{scale}.png", downscale_array(pixels, scale))
        found = evaluate(untrained(4), tmp_path / "hr", tmp_path / "lr")
        assert [image.name for image in found.images] == ["img_001_HR.png"]

    def test_an_lr_photo_is_never_given_to_another_photo(self, tmp_path: Path) -> None:
        save(tmp_path / "hr" / "a.png", crop("coffee"))
        save(tmp_path / "hr" / "a_x2.png", crop("astronaut"))
        save(tmp_path / "lr" / "a.png", downscale_array(crop("coffee"), 4))
        found = evaluate(untrained(), tmp_path / "hr", tmp_path / "lr")
        assert [image.name for image in found.images] == ["a.png"]
        assert [photo.name for photo in found.left_out] == ["a_x2.png"]

    def test_missing_doubled_and_wrong_lr_photos_are_named(self, tmp_path: Path) -> None:
        pixels = crop("coffee")
        low = downscale_array(pixels, 4)
        for name in ("good", "lonely", "double", "wrong", "large"):
            save(tmp_path / "hr" / f"{name}.png", pixels)
        for name, lr in (
            ("good", low),
            ("double_LR", low),
            ("doublex4", low),
            ("wrong", low[:20]),
            ("large", pixels),
        ):
            save(tmp_path / "lr" / f"{name}.png", lr)
        save(tmp_path / "lr" / "double_x4.png", low)
        found = evaluate(untrained(), tmp_path / "hr", tmp_path / "lr")
        reasons = {photo.name: photo.reason for photo in found.left_out}
        assert [image.name for image in found.images] == ["good.png"]
        assert "no LR photo" in reasons["lonely.png"]
        assert "several" in reasons["double.png"]
        assert reasons["wrong.png"] == "LR is 30x20, but HR of 120x120 needs 30x30 at x4"
        assert "LR is 120x120" in reasons["large.png"]

    def test_lr_of_a_set_cropped_to_multiples_of_12_crops_hr(self, tmp_path: Path) -> None:
        pixels = crop("coffee")[:118]  # 118 -> 108 is what a set for x2, x3 and x4 keeps
        save(tmp_path / "hr" / "a.png", pixels)
        save(tmp_path / "lr" / "a.png", downscale_array(np.ascontiguousarray(pixels[:108]), 4))
        image = evaluate(untrained(), tmp_path / "hr", tmp_path / "lr").images[0]
        save(tmp_path / "cropped" / "a.png", pixels[:108])
        assert image == evaluate(untrained(), tmp_path / "cropped").images[0]


class TestInput:
    def test_broken_photos_are_named_and_the_rest_goes_on(self, hr: Path) -> None:
        (hr / "broken.png").write_bytes((hr / "coffee.png").read_bytes()[:2000])
        (hr / "words.jpg").write_text("no photo", encoding="utf-8")
        save(hr / "tiny.png", crop("coffee", 3))
        save(hr / "small.png", crop("coffee", 16))
        (hr / "notes.txt").write_text("not looked at", encoding="utf-8")
        seen: list[tuple[int, int, str]] = []
        found = evaluate(untrained(), hr, progress=lambda *what: seen.append(what))
        assert {photo.name for photo in found.left_out} == {"broken.png", "words.jpg", "tiny.png", "small.png"}
        assert all(photo.reason and "\n" not in photo.reason for photo in found.left_out)
        assert len(found.images) == 3
        assert [number for number, _, _ in seen] == list(range(1, 8))
        assert "left out: broken.png" in found.table()

    def test_non_ascii_names(self, tmp_path: Path) -> None:
        save(tmp_path / "фото" / "Zürich – 東京.png", crop("coffee"))
        found = evaluate(untrained(), tmp_path / "фото", pictures=tmp_path / "pictures")
        assert found.pictures["Zürich – 東京.png"].is_file()

    def test_nothing_left_is_an_error_with_the_first_reason(self, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"no photo could be measured.*bad\.png"):
            evaluate(untrained(), tmp_path)

    def test_missing_and_empty_folders(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nowhere"):
            evaluate(untrained(), tmp_path / "nowhere")
        with pytest.raises(InputError, match="no photos"):
            evaluate(untrained(), tmp_path)

    def test_options_that_cannot_be(self, hr: Path) -> None:
        with pytest.raises(ModelError, match="x4, not x2"):
            evaluate(untrained(), hr, scale=2)
        with pytest.raises(RecipeError, match="limit"):
            evaluate(untrained(), hr, limit=0)
        assert len(evaluate(untrained(), hr, scale=4, limit=2).images) == 2


class TestShown:
    def test_table_has_protocol_above_bicubic_beside_and_mean_last(self, hr: Path) -> None:
        lines = evaluate(untrained(), hr).table().splitlines()
        assert lines[0] == "untrained@0123456789ab, x4, float32"
        assert "border 4 px" in lines[1]
        heading = next(line for line in lines if line.startswith("photo"))
        assert heading.split()[1:5] == ["PSNR-Y", "bicubic", "SSIM-Y", "bicubic"]
        table = lines[lines.index(heading) : lines.index("", lines.index(heading))]
        assert len({len(line) for line in table}) == 1
        assert table[-1].startswith("mean")

    @pytest.mark.parametrize("name", ["short.png", "a photo whose name takes fifty columns or more.png"])
    def test_no_line_is_wider_than_100_columns_and_no_figure_is_lost(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / "hr" / name, crop("coffee"))
        found = evaluate(untrained(), tmp_path / "hr", features=load_feature_network("random", ["conv3_4"]))
        table = found.table()
        assert max(map(len, table.splitlines())) <= 100
        assert all(COLUMNS[column].label in table for column in found.columns)
        rows = [line.removeprefix(name).split() for line in table.splitlines() if line.startswith(name)]
        shown = [cell for row in rows for cell in row]
        figures = [(found.images[0].figures[key], found.images[0].baseline[key]) for key in found.columns]
        assert len(shown) == 2 * len(found.columns)
        assert [float(cell) for cell in shown] == pytest.approx(
            [value for pair in figures for value in pair], abs=0.06
        )

    def test_json_has_the_documented_shape(self, hr: Path) -> None:
        (hr / "bad.png").write_bytes(b"nothing")
        report = json.loads(json.dumps(evaluate(untrained(), hr).to_json(), allow_nan=False))
        names = {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "sharpness", "sharpness_hr", "sharpness_ratio"}
        assert set(report["mean"]) == set(report["bicubic"]) == names
        assert {*report["images"][0]} == names | {"name", "bicubic"}
        assert set(report["images"][0]["bicubic"]) == names
        assert report["left_out"][0]["name"] == "bad.png"
        assert (report["model"], report["scale"]) == ("untrained@0123456789ab", 4)
        assert "BT.601" in report["protocol"]


class TestPictures:
    def test_one_for_each_photo_with_a_name_of_its_own(self, tmp_path: Path) -> None:
        for name in ("a.png", "a.tiff", "sub/a.png"):
            save(tmp_path / "hr" / name, crop("coffee"))
        folder = tmp_path / "out" / "pictures"
        found = evaluate(untrained(), tmp_path / "hr", pictures=folder)
        assert {name: str(path.relative_to(folder)) for name, path in found.pictures.items()} == {
            "a.png": "a.png.png",
            "a.tiff": "a.tiff.png",
            "sub/a.png": "sub/a.png",
        }
        assert {path for path in folder.rglob("*") if path.is_file()} == set(found.pictures.values())
        assert Image.open(found.pictures["a.png"]).width > 4 * PANEL

    def test_deblurring_has_three_panels(self, tmp_path: Path) -> None:
        for side in ("hr", "lr"):
            save(tmp_path / side / "a.png", crop("coffee"))
        found = evaluate(unchanged(), tmp_path / "hr", tmp_path / "lr", pictures=tmp_path / "p")
        assert 3 * PANEL < Image.open(found.pictures["a.png"]).width < 4 * PANEL

    def test_most_detailed_finds_the_noise(self) -> None:
        photo = np.full((300, 400, 3), 90, np.uint8)
        photo[:, 200:] = 200  # a strong edge is less detail than texture
        photo[180:260, 40:120] = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        box = most_detailed(photo, 80)
        assert abs(box.left - 40) <= 4
        assert abs(box.top - 180) <= 4
        assert box.cut(photo).shape == (80, 80, 3)

    @pytest.mark.parametrize("size", [(12, 9), (40, 900), (900, 30), (700, 500)])
    def test_shows_the_same_part_of_every_panel_enlarged(self, size: tuple[int, int], tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        photos = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(3)]
        panels = [Panel(f"P{number}", "caption", photo) for number, photo in enumerate(photos)]
        path = tmp_path / "sheet.png"
        path.write_bytes(side_by_side("title " * 60, panels))
        sheet = np.asarray(Image.open(path))
        box = most_detailed(photos[0], PANEL // 3)
        zoom = PANEL // box.side
        lefts = [14 + number * (PANEL + 14) for number in range(3)]
        details = [box.cut(photo).repeat(zoom, 0).repeat(zoom, 1) for photo in photos]
        height = details[0].shape[0]
        rows = [
            top
            for top in range(sheet.shape[0] - height)
            if all(
                np.array_equal(sheet[top : top + height, left : left + detail.shape[1]], detail)
                for left, detail in zip(lefts, details, strict=True)
            )
        ]
        assert len(rows) == 1

    def test_a_folder_that_cannot_be_made(self, hr: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way", encoding="utf-8")
        with pytest.raises(ResourceError, match="file"):
            evaluate(untrained(), hr, pictures=tmp_path / "file" / "pictures")


class TestSelfCheck:
    def test_reproduces_the_published_bicubic_baseline(self) -> None:
        found = self_check(shared_folder("data/benchmarks"), scales=[4])
        assert [(row.set, row.scale, row.ok) for row in found.rows] == [("Set5", 4, True), ("Set14", 4, True)]
        assert found.ok
        assert found.rows[0].psnr_y == pytest.approx(28.42, abs=0.02)
        assert found.rows[1].ssim_y == pytest.approx(0.7027, abs=0.001)

    def test_other_photos_do_not_pass(self, tmp_path: Path) -> None:
        save(tmp_path / "Set5" / "HR" / "a.png", crop("coffee"))
        found = self_check(tmp_path)
        assert [row.ok for row in found.rows] == [False] * 3
        assert not found.ok
        assert found.table().count("DIFFERS") == 3
        assert json.loads(json.dumps(found.to_json()))["rows"][0]["published_psnr_y"] == 33.66

    @pytest.mark.parametrize(
        ("psnr", "ssim", "ok"), [(28.43, 0.811, True), (28.45, 0.8104, False), (28.42, 0.812, False)]
    )
    def test_tolerance(self, psnr: float, ssim: float, ok: bool) -> None:
        assert CheckRow("Set5", 4, psnr, ssim, 28.42, 0.8104).ok is ok

    def test_a_folder_without_the_sets(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="Set5"):
            self_check(tmp_path)
