"""Animated GIF, WebP and PNG: frames, times, loops and transparency, held against Pillow."""

from __future__ import annotations

import os
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ray_sr.errors import RecipeError
from ray_sr.images import Limits, Photo
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.video.animations import RAW, upscale_animation
from ray_sr.video.apng import write_apng
from ray_sr.video.inputs import check_photos_output, is_moving, plan_moving, split_inputs
from ray_sr.video.options import ClipOptions, ClipResult

DURATIONS = [100, 40, 250, 20, 70, 1000]


@pytest.fixture
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _pictures(opaque: bool = True, height: int = 20, width: int = 30) -> list[np.ndarray]:
    """Few colours, so that a GIF holds them exactly; RGBA."""
    pictures = []
    for index in range(len(DURATIONS)):
        picture = np.zeros((height, width, 4), np.uint8)
        picture[..., :3] = (30, 60, 90)
        picture[4:12, 3 * index : 3 * index + 6, :3] = (250, 200, 40)
        picture[..., 3] = 255
        if not opaque:
            picture[:, -8:, 3] = 0
        pictures.append(picture)
    return pictures


def _save(path: Path, pictures: list[np.ndarray], loop: int | None = 0, **options: Any) -> Path:
    images = [Image.fromarray(picture) for picture in pictures]
    if (pictures[0][..., 3] == 255).all():
        images = [image.convert("RGB") for image in images]
    if loop is not None:
        options["loop"] = loop
    if path.suffix == ".webp":
        options["lossless"] = True
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS, **options)
    return path


def _read(path: Path) -> tuple[list[np.ndarray], list[float], int | None]:
    with Image.open(path) as image:
        frames, durations = [], []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            image.load()
            frames.append(np.asarray(image.convert("RGBA")))
            durations.append(float(image.info["duration"]))
        return frames, durations, image.info.get("loop")


def _upscale(engine: Engine, source: Path, target: Path, **options: Any) -> ClipResult:
    return upscale_animation(source, target, engine, options=ClipOptions(lossless=True, **options), quiet=True)


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("loop", [0, 3])
@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_keeps_frames_times_loops_and_transparency(
    engine: Engine, tmp_path: Path, ending: str, loop: int, opaque: bool
) -> None:
    source = _save(tmp_path / f"a.{ending}", _pictures(opaque), loop)
    result = _upscale(engine, source, tmp_path / f"b.{ending}")
    assert (result.status, result.reason, result.frames, result.warnings) == ("done", "", 6, ())
    before, after = _read(source), _read(tmp_path / f"b.{ending}")
    assert before[1] == DURATIONS
    assert after[1:] == before[1:]
    assert after[2] == loop
    for small, large in zip(before[0], after[0], strict=True):
        alpha = None if opaque else np.ascontiguousarray(small[..., 3])
        expected = upscale_photo(Photo(np.ascontiguousarray(small[..., :3]), alpha), engine)
        shown = large[..., 3] > 0
        assert shown.all() == opaque
        if expected.alpha is not None:
            assert np.array_equal(large[..., 3], expected.alpha)
        error = np.abs(large[..., :3].astype(int) - expected.pixels)[shown]
        assert error.mean() < (3 if ending == "gif" else 0.01)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_format_becomes_another(engine: Engine, tmp_path: Path) -> None:
    source = _save(tmp_path / "a.gif", _pictures())
    for ending in ("webp", "apng", "png"):
        assert _upscale(engine, source, tmp_path / f"b.{ending}").status == "done"
        frames, durations, _ = _read(tmp_path / f"b.{ending}")
        assert durations == DURATIONS
        assert frames[0].shape == (40, 60, 4)


def test_a_profile_goes_along(engine: Engine, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for ending in ("webp", "png"):
        source = _save(tmp_path / f"a.{ending}", _pictures(), icc_profile=profile)
        _upscale(engine, source, tmp_path / f"b.{ending}")
        with Image.open(tmp_path / f"b.{ending}") as image:
            assert image.info["icc_profile"] == profile


def test_frames_that_are_the_same_are_computed_once(engine: Engine, tmp_path: Path) -> None:
    first, second = _pictures()[:2]
    noise = first.copy()
    noise[..., :3] = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    target = BytesIO()
    frames = [first, first, first, noise, noise, second]
    write_apng(target, frames, [Fraction(1, 10)] * 6, 0, None)
    (tmp_path / "a.png").write_bytes(target.getvalue())
    result = _upscale(engine, tmp_path / "a.png", tmp_path / "b.png")
    assert result.frames == 6
    assert result.frames_reused == pytest.approx(3 / 6)
    assert engine.stats.tiles == 3


def test_apng_keeps_odd_fractions_and_only_what_changes() -> None:
    frames = [picture[..., :3] for picture in _pictures()]
    durations = [Fraction(1001, 30000), Fraction(1, 3), Fraction(1, 24), Fraction(0), Fraction(2), Fraction(7, 9)]
    target = BytesIO()
    write_apng(target, [*frames[:3], *frames[2:5]], durations, 5, None)
    with Image.open(target) as image:
        assert (image.n_frames, image.info["loop"]) == (6, 5)  # type: ignore[attr-defined]
        for number, picture in enumerate([*frames[:3], *frames[2:5]]):
            image.seek(number)
            assert image.info["duration"] == pytest.approx(float(durations[number]) * 1000)
            assert np.array_equal(np.asarray(image.convert("RGB")), picture)


class _Interrupting(Bicubic):
    left = 4

    def forward(self, batch: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().forward(batch)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_interrupted_animation_goes_on_to_the_same_bytes(engine: Engine, tmp_path: Path, ending: str) -> None:
    source = _save(tmp_path / f"a.{ending}", _pictures())
    _upscale(engine, source, tmp_path / f"whole.{ending}")
    model = _Interrupting(2)
    broken = Engine(model, model.capability)
    broken._exact.left = broken._fast.left = 4  # type: ignore[union-attr]
    target = tmp_path / f"b.{ending}"
    with pytest.raises(KeyboardInterrupt):
        _upscale(broken, source, target)
    raw = tmp_path / f".b.{ending}.segments" / RAW
    assert raw.stat().st_size == 3 * 40 * 60 * 4
    with open(raw, "ab") as file:
        file.write(b"half a frame")
    with pytest.raises(RecipeError, match="--resume goes on"):
        _upscale(engine, source, target)
    fresh = Engine(Bicubic(2), Bicubic(2).capability)
    assert _upscale(fresh, source, target, resume=True).status == "done"
    assert fresh.stats.tiles == 3
    assert target.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not raw.exists()


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_damaged_animations_are_refused_or_read_as_far_as_they_go(
    engine: Engine, tmp_path: Path, ending: str
) -> None:
    pictures = _pictures()
    for index, picture in enumerate(pictures):
        picture[..., :3] = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    source = _save(tmp_path / f"a.{ending}", pictures)
    data = source.read_bytes()
    for cut in (0, 10, 40, len(data) // 3, len(data) // 2, len(data) - len(data) // 5):
        (tmp_path / f"cut.{ending}").write_bytes(data[:cut])
        result = _upscale(engine, tmp_path / f"cut.{ending}", tmp_path / "b.png", existing="overwrite")
        assert result.status == "failed" or (ending == "gif" and result.frames < 6)
        assert "\n" not in result.reason
        taken = _upscale(
            engine,
            tmp_path / f"cut.{ending}",
            tmp_path / "c.png",
            existing="overwrite",
            limits=Limits(strict=False),
        )
        assert taken.status in ("done", "failed")
    limited = _upscale(engine, source, tmp_path / "d.png", limits=Limits(max_pixels=599))
    assert "over the limit" in limited.reason


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_ends_in_a_result_or_in_one_line(engine: Engine, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = _save(tmp_path / f"a.{('gif', 'webp', 'png')[seed % 3]}", _pictures(seed % 2 == 0))
    data = bytearray(source.read_bytes())
    for _ in range(int(rng.integers(1, 30))):
        data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
    source.write_bytes(data)
    result = _upscale(engine, source, tmp_path / "b.webp", limits=Limits(strict=bool(seed % 2)))
    assert result.status in ("done", "failed")
    assert "\n" not in result.reason


def test_what_moves_is_told_from_photos_by_what_the_file_says(tmp_path: Path) -> None:
    moving = [_save(tmp_path / f"m.{ending}", _pictures()) for ending in ("gif", "webp", "png")]
    still = [tmp_path / f"s.{ending}" for ending in ("webp", "png")]
    for path in still:
        Image.fromarray(_pictures()[0]).save(path)
    (tmp_path / "c.mp4").write_bytes(b"")
    assert all(is_moving(str(path)) for path in [*moving, tmp_path / "c.mp4"])
    assert not any(is_moving(str(path)) for path in [*still, tmp_path, tmp_path / "gone.gif"])
    photos, found = split_inputs([str(tmp_path / "*.png"), str(tmp_path / "s.webp"), str(tmp_path / "gone.mp4")])
    assert photos == [str(tmp_path / name) for name in ("s.png", "s.webp", "gone.mp4")]
    assert found == [str(tmp_path / "m.png")]


def test_a_photo_becomes_no_clip(tmp_path: Path) -> None:
    (tmp_path / "v1.mov").mkdir()
    check_photos_output(["a.png"], str(tmp_path / "v1.mov"))  # a folder, whatever its name
    check_photos_output(["gone.mp4"], str(tmp_path / "big.mp4"))
    for name in ("big.mp4", "big.MKV", "big.avi"):
        with pytest.raises(RecipeError, match=r"names a clip, a\.png is none"):
            check_photos_output(["gone.mp4", "a.png"], str(tmp_path / name))


def test_results_are_named_like_those_of_photos(tmp_path: Path) -> None:
    def names(inputs: list[str], output: str | None, format: str | None = None) -> list[str]:
        return [os.path.relpath(job.target, tmp_path) for job in plan_moving(inputs, output, "_x2", format)]

    os.chdir(tmp_path)
    clips = [str(tmp_path / name) for name in ("a.mp4", "b.avi", "c.gif", "d.webp", "a.mov")]
    assert names(clips, "out") == ["out/a_x2.mp4", "out/b_x2.mkv", "out/c_x2.gif", "out/d_x2.webp", "out/a_x2.mov"]
    assert names(clips[2:3], None, "webp") == ["c_x2.webp"]
    assert names(clips[:1], "big.MKV") == ["big.MKV"]
    for inputs, output, words in [
        (clips, "big.mp4", "names one file, but there are 5"),
        (clips[:1], "big.gif", "a clip's result must end in"),
        (clips[:1], "big.avi", "cannot be written as that"),
        (clips[2:3], "big.jpg", "cannot be written as that"),
        (clips[:1], clips[0], "would replace its source"),
    ]:
        with pytest.raises(RecipeError, match=words):
            names(inputs, output)
