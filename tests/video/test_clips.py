"""Clips: what they carry is in the result, frame by frame, and each frame is what the engine makes of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="clips need the extra ray-sr[video]")

from ray_sr.errors import RecipeError
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.clip import ClipInfo, Colour, plan_segments
from ray_sr.video.clips import upscale_clip
from ray_sr.video.options import ClipOptions, ClipResult
from tests.video.made_clips import (
    VARIABLE,
    Clip,
    contents,
    moving_bar,
    rgb_frames,
    steady,
    uneven,
    write_clip,
)


@pytest.fixture
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _upscale(engine: Engine, source: Path, target: Path, **options: Any) -> ClipResult:
    wanted = options.pop("wanted", None)
    return upscale_clip(source, target, engine, wanted=wanted, options=ClipOptions(**options), quiet=True)


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize(
    ("ending", "times"), [("mp4", steady), ("mp4", uneven), ("mov", uneven), ("mkv", uneven), ("webm", steady)]
)
def test_ten_seconds_keep_times_sound_rotation_and_colours(
    engine: Engine, tmp_path: Path, times: Any, ending: str
) -> None:
    webm = ending == "webm"
    clip = Clip(
        [moving_bar(index) for index in range(240)],
        times(240),
        codec="libvpx-vp9" if webm else "libx264",
        sound="libopus" if webm else "aac",
        rotation=90 if ending in ("mp4", "mov") else 0,
        options={"cpu-used": "8", "deadline": "realtime", "g": "50"} if webm else {"g": "50"},
        colour=(1, 1, 1, 1) if ending == "mp4" else (9, 9, 16, 1),
        title="Fjell",
        chapters=True,
    )
    source = write_clip(tmp_path / f"a.{ending}", clip)
    result = _upscale(engine, source, tmp_path / f"big.{ending}")
    assert (result.status, result.reason, result.frames, result.warnings) == ("done", "", 240, ())
    before, after = contents(source), contents(tmp_path / f"big.{ending}")
    assert after.times == before.times
    assert after.time_base == before.time_base
    assert after.size == (128, 96)
    assert abs(after.seconds - before.seconds) <= 0.001
    if before.stream_seconds is not None:
        assert after.stream_seconds == before.stream_seconds
    for name in ("colour", "rotation", "matrix", "streams", "chapters", "title", "pixels"):
        assert getattr(after, name) == getattr(before, name), name
    assert len(before.streams) == 1
    assert before.rotation == (90 if ending in ("mp4", "mov") else 0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_frames_are_what_the_engine_makes_of_them(engine: Engine, tmp_path: Path) -> None:
    clip = Clip([moving_bar(index) for index in range(30)], uneven(30), codec="ffv1", pixels="yuv444p", sound=None)
    clip.options = {}
    source = write_clip(tmp_path / "a.mkv", clip)
    _upscale(engine, source, tmp_path / "lossless.mkv", codec="ffv1")
    _upscale(engine, source, tmp_path / "lossy.mkv")
    expected = [engine.run(frame, np.uint8) for frame in rgb_frames(source)]
    for frame, wanted in zip(rgb_frames(tmp_path / "lossless.mkv"), expected, strict=True):
        assert np.abs(frame.astype(int) - wanted).max() <= 2  # what YUV of 8 bits cannot say
    for frame, wanted in zip(rgb_frames(tmp_path / "lossy.mkv"), expected, strict=True):
        assert _psnr(frame, wanted) > 40


@pytest.mark.parametrize("colour", [(1, 1, 1, 1), (1, 1, 1, 2), (6, 6, 6, 1), (6, 6, 6, 2), (9, 9, 16, 1)])
def test_scale_1_gives_the_same_colours_in_every_matrix_and_range(
    tmp_path: Path, colour: tuple[int, int, int, int]
) -> None:
    model = Bicubic(1)
    flat = [np.full((48, 64, 3), level, np.uint8) for level in ((180, 80, 60), (20, 200, 90), (250, 250, 250))]
    source = write_clip(tmp_path / "a.mp4", Clip(flat, steady(3), colour=colour, options={"crf": "1"}))
    _upscale(Engine(model, model.capability), source, tmp_path / "b.mp4", crf=1)
    assert contents(tmp_path / "b.mp4").colour == colour
    for before, after in zip(rgb_frames(source), rgb_frames(tmp_path / "b.mp4"), strict=True):
        assert np.abs(before.astype(int) - after).max() <= 2


def test_a_matrix_left_to_a_guess_is_named_where_players_would_guess_another(tmp_path: Path) -> None:
    model = Bicubic(2)
    unnamed = (2, 2, 2, 1)
    small = write_clip(tmp_path / "small.mp4", Clip([moving_bar(0)] * 2, steady(2), colour=unnamed))
    tall = [moving_bar(0, 400, 64)] * 2
    large = write_clip(tmp_path / "large.mp4", Clip(tall, steady(2), colour=unnamed))
    engine = Engine(model, model.capability)
    for source in (small, large):
        _upscale(engine, source, tmp_path / f"big_{source.name}")
    assert contents(tmp_path / "big_small.mp4").colour[0] == 2
    assert contents(tmp_path / "big_large.mp4").colour[0] == 6


def test_ten_bits_stay_ten_bits(engine: Engine, tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], 48, 0).repeat(3, 2)
    clip = Clip([ramp] * 3, steady(3), codec="libx265", pixels="yuv420p10le", colour=(9, 9, 16, 1))
    clip.options = {"x265-params": "log-level=error", "crf": "4"}
    source = write_clip(tmp_path / "a.mp4", clip)
    assert _upscale(engine, source, tmp_path / "b.mp4").status == "done"
    found = contents(tmp_path / "b.mp4")
    assert found.pixels == "yuv420p10le"
    assert found.colour == (9, 9, 16, 1)


def test_odd_sizes_become_even_and_pixels_that_are_not_square_stay_so(engine: Engine, tmp_path: Path) -> None:
    clip = Clip([moving_bar(0, 46, 62)] * 2, steady(2), sar=Fraction(4, 3))
    source = write_clip(tmp_path / "a.mp4", clip)
    assert _upscale(engine, source, tmp_path / "b.mp4", wanted=TargetSize(1.5)).reason == ""
    found = contents(tmp_path / "b.mp4")
    assert found.size == (94, 70)
    assert found.sar == Fraction(4, 3)


def test_equal_frames_and_equal_tiles_are_computed_once(tmp_path: Path) -> None:
    model = Bicubic(2)
    engine = Engine(model, model.capability, tile=48, overlap=4)
    still = np.random.default_rng(0).integers(0, 256, (144, 192, 3), dtype=np.uint8)
    pictures = []
    for index in range(24):
        picture = still.copy()
        if 8 <= index < 16:  # a cursor in one corner
            picture[4:10, 4 + index : 10 + index] = 255
        pictures.append(picture)
    clip = Clip(pictures, steady(24), codec="ffv1", pixels="yuv444p", sound=None, options={})
    source = write_clip(tmp_path / "a.mkv", clip)
    result = _upscale(engine, source, tmp_path / "b.mkv", codec="ffv1")
    assert result.frames_reused == pytest.approx(14 / 24)
    assert result.tiles_reused > 0.7
    plain = Engine(model, model.capability, tile=48, overlap=4)
    for frame, before in zip(rgb_frames(tmp_path / "b.mkv"), rgb_frames(source), strict=True):
        assert np.abs(frame.astype(int) - plain.run(before, np.uint8)).max() <= 2


def test_subtitles_are_kept_or_named_and_sound_is_never_lost(engine: Engine, tmp_path: Path) -> None:
    clip = Clip([moving_bar(index) for index in range(24)], steady(24), sound="pcm_s16le", subtitles=True)
    source = write_clip(tmp_path / "a.mkv", clip)
    assert _upscale(engine, source, tmp_path / "b.mkv").warnings == ()
    assert contents(tmp_path / "b.mkv").streams == contents(source).streams
    tiles = engine.stats.tiles
    refused = _upscale(engine, source, tmp_path / "b.webm")
    assert engine.stats.tiles == tiles  # said before the work
    assert refused.status == "failed"
    assert "does not hold its sound (pcm_s16le)" in refused.reason
    quiet = write_clip(tmp_path / "c.mkv", Clip(clip.pictures, clip.times, sound=None, subtitles=True))
    assert _upscale(engine, quiet, tmp_path / "c.mp4").warnings == ("subtitle-dropped",)


def test_nothing_is_replaced_unasked(engine: Engine, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(0)] * 2, steady(2)))
    target = tmp_path / "b.mp4"
    target.write_bytes(b"precious")
    assert "exists already" in _upscale(engine, source, target).reason
    assert _upscale(engine, source, target, existing="skip").status == "skipped"
    assert target.read_bytes() == b"precious"
    assert _upscale(engine, source, target, existing="overwrite").status == "done"
    (tmp_path / "folder.mp4").mkdir()
    assert _upscale(engine, source, tmp_path / "folder.mp4").status == "failed"


def test_codecs_that_do_not_fit_are_refused(engine: Engine, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip([moving_bar(0)] * 2, steady(2), sound=None))
    for name, options, words in [
        ("b.webm", {"codec": "h264"}, "webm does not hold h264"),
        ("b.mp4", {"codec": "ffv1"}, "mp4 does not hold ffv1"),
        ("b.mp4", {"crf": 60}, "takes a crf of 0 to 51"),
        ("b.mkv", {"codec": "ffv1", "crf": 3}, "lossless"),
        ("b.avi", {}, "must end in one of"),
    ]:
        with pytest.raises(RecipeError, match=words):
            _upscale(engine, source, tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


@pytest.mark.parametrize("codec", ["h265", "av1", "vp9"])
def test_every_codec_joins_segments_without_a_frame_too_many(
    engine: Engine, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip([moving_bar(index) for index in range(130)], uneven(130)))
    result = _upscale(engine, source, tmp_path / "b.mkv", codec=codec)
    assert (result.status, result.reason) == ("done", "")
    assert contents(tmp_path / "b.mkv").times == contents(source).times
    for frame, wanted in zip(rgb_frames(tmp_path / "b.mkv"), rgb_frames(source), strict=True):
        assert _psnr(frame, engine.run(wanted, np.uint8)) > 30


def _info(times: list[int], keys: list[int]) -> ClipInfo:
    facts = (0, 64, 48, "yuv420p", 8, (1, 1), Fraction(1, 24), Fraction(24), None, None, Colour(1, 1, 1, 1))
    return ClipInfo(*facts, tuple(times), tuple(keys))


@pytest.mark.parametrize("seed", range(20))
def test_segments_hold_every_frame_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 9, rng.integers(1, 900))).tolist()
    keys = [times[0], *rng.choice(times, rng.integers(0, len(times)), replace=False).tolist()]
    segments = plan_segments(_info(times, sorted(set(keys))), most=96)
    held = [[t for t in times if s.start <= t and (s.stop is None or t < s.stop)] for s in segments]
    assert [time for part in held for time in part] == times
    assert all(1 <= len(part) <= 96 for part in held)
    assert all(segment.seek is None or segment.seek <= segment.start for segment in segments)
    assert all(len(part) > 40 for part in held[:-1])


def test_a_clip_without_times_is_one_segment() -> None:
    assert [segment.stop for segment in plan_segments(_info([], []))] == [None]
    assert sum(VARIABLE) == 24000
