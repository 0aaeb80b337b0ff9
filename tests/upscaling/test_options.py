"""Sizes, self-ensemble, consistency, comparison and pipes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_sr.cli import main
from ray_sr.errors import InputError, RecipeError
from ray_sr.images import Limits, Photo, decode, encode, read_photo, write_photo
from ray_sr.images.resample import downscale_array, resize_array
from ray_sr.metrics import psnr
from ray_sr.models import Bicubic, Capability, Generator, build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.consistency import BEST_DB, back_project, consistency_db
from ray_sr.upscaling.files import FileOptions, upscale_files
from ray_sr.upscaling.piped import upscale_piped
from ray_sr.upscaling.target_size import TargetSize
from tests.photos import real_photos


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _network(scale: int = 2) -> Generator:
    torch.manual_seed(11)
    spec = NetworkSpec(scale=scale, generator=CompactSpec(convs=2, channels=8))
    return build_generator(spec).eval()


def _coffee(height: int = 64, width: int = 80) -> np.ndarray:
    return real_photos()["coffee"][:height, :width].copy()


# Sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (TargetSize(), (120, 80)),
        (TargetSize(1.5), (90, 60)),
        (TargetSize(width=100), (150, 100)),
        (TargetSize(height=30), (30, 20)),
        (TargetSize(width=100, height=100), (100, 67)),
        (TargetSize(width=50, height=1000), (75, 50)),
        (TargetSize(height=1), (1, 1)),
    ],
)
def test_a_result_has_the_wanted_size_and_the_photos_shape(
    engine: Engine, wanted: TargetSize, size: tuple[int, int]
) -> None:
    photo = Photo(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8))
    result = upscale_photo(photo, engine, wanted=wanted)
    assert (result.height, result.width) == size
    assert np.array_equal(result.pixels, resize_array(upscale_photo(photo, engine).pixels, *size))


def test_results_are_named_by_what_was_wanted() -> None:
    several = (TargetSize(), TargetSize(2.5), TargetSize(width=9), TargetSize(height=8), TargetSize(None, 9, 8))
    assert [wanted.suffix(4) for wanted in several] == ["_x4", "_x2.5", "_9w", "_8h", "_9x8"]


def test_sizes_that_contradict_are_refused() -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        TargetSize(2, width=100)
    with pytest.raises(RecipeError, match="at least 1 pixel"):
        TargetSize(width=0)


# Self-ensemble --------------------------------------------------------------------------------------------


def test_the_ensemble_is_the_mean_of_eight_orientations() -> None:
    network = _network()
    picture = _coffee(31, 44)
    one = Engine(network, network.capability, precision="float32")
    expected = np.zeros((62, 88, 3))
    for turns in range(4):
        for mirrored in (False, True):
            turned = np.rot90(picture, turns)
            result = one.run(np.ascontiguousarray(turned[:, ::-1] if mirrored else turned))
            expected += np.rot90(result[:, ::-1] if mirrored else result, -turns) / 8
    several = Engine(network, network.capability, precision="float32", ensemble=True)
    assert np.abs(several.run(picture) - expected).max() < 1e-5
    assert np.abs(several.run(picture) - one.run(picture)).max() > 1e-3
    tiled = Engine(network, network.capability, precision="float32", ensemble=True, tile=24, batch=2)
    assert np.abs(tiled.run(picture) - expected).max() < 1e-5


def test_an_ensemble_turns_with_its_picture() -> None:
    network = _network()
    engine = Engine(network, network.capability, precision="float32", ensemble=True)
    picture = _coffee(20, 33)
    mirrored = engine.run(np.ascontiguousarray(picture[:, ::-1]))[:, ::-1]
    transposed = engine.run(np.ascontiguousarray(picture.swapaxes(0, 1))).swapaxes(0, 1)
    assert np.abs(engine.run(picture) - mirrored).max() < 1e-5
    assert np.abs(engine.run(picture) - transposed).max() < 1e-5


# Consistency ----------------------------------------------------------------------------------------------


class _Drifting(Generator):
    """Enlarges, and shifts colours as drifting models do."""

    capability = Capability(2, 3, 1, 2, False, False)

    def __init__(self) -> None:
        super().__init__()
        self.bicubic = Bicubic(2)
        self.shift = nn.Parameter(torch.tensor([0.05, -0.03, 0.02])[None, :, None, None])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.bicubic(batch) * 0.9 + self.shift


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_consistent_result_shrinks_to_its_photo(dtype: type) -> None:
    model = _Drifting()
    engine = Engine(model, model.capability)
    pixels = (_coffee().astype(dtype) * (np.iinfo(dtype).max // 255)).astype(dtype)
    plain = upscale_photo(Photo(pixels), engine)
    result = upscale_photo(Photo(pixels), engine, consistency=True)
    assert np.abs(downscale_array(result.pixels, 2).astype(int) - pixels).max() <= 1
    assert np.abs(downscale_array(plain.pixels, 2).astype(int) - pixels).max() > np.iinfo(dtype).max // 50
    assert consistency_db(plain.pixels, pixels) < 35
    assert consistency_db(result.pixels, pixels) > 55


def test_consistency_holds_for_any_enlargement_and_keeps_gray_and_transparency() -> None:
    model = _Drifting()
    engine = Engine(model, model.capability)
    gray = _coffee()[..., :1]
    alpha = np.full(gray.shape[:2], 255, np.uint8)
    alpha[:9] = 0
    photo = Photo(gray, alpha=alpha)
    result = upscale_photo(photo, engine, wanted=TargetSize(3.3), consistency=True)
    assert result.pixels.shape == (211, 264, 1)
    back = resize_array(result.pixels, 64, 80)
    assert np.abs(back[20:].astype(int) - gray[20:]).max() <= 1
    assert (result.alpha[:20] == 0).all()


def test_the_reported_consistency_is_the_psnr_of_the_shrunk_result() -> None:
    photo = _coffee()
    result = resize_array(photo, 128, 160) // 2 + 50
    assert consistency_db(result, photo) == pytest.approx(psnr(downscale_array(result, 2), photo), abs=0.05)
    flat = np.full((8, 8, 3), 7, np.uint8)
    assert consistency_db(np.full((16, 16, 3), 7, np.uint8), flat) == BEST_DB
    json.dumps(consistency_db(np.full((16, 16, 3), 7, np.uint8), flat), allow_nan=False)


def test_back_projection_ends_where_equality_is_impossible() -> None:
    """Single bright pixels on black: the result cannot go below black beside them."""
    photo = np.zeros((12, 12, 1), np.uint8)
    photo[::3, ::3] = 255
    result = back_project(np.zeros((24, 24, 1), np.float32), photo)
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("scale", [1, 0.5])
def test_consistency_without_enlargement_is_refused(engine: Engine, scale: float) -> None:
    with pytest.raises(InputError, match="no enlargement"):
        upscale_photo(Photo(_coffee()), engine, scale=scale, consistency=True)


# Comparison -----------------------------------------------------------------------------------------------


def test_a_comparison_shows_bicubic_left_and_the_result_right(tmp_path: Path) -> None:
    network = _network()
    engine = Engine(network, network.capability)
    (tmp_path / "in").mkdir()
    write_photo(tmp_path / "in" / "a.png", Photo(_coffee()))
    options = FileOptions(compare=True, consistency=True)
    summary = upscale_files([tmp_path / "in"], None, engine, options=options, quiet=True)
    assert summary.exit_code == 0
    assert (summary.files[0].consistency_db or 0) > 40
    result = read_photo(tmp_path / "in" / "a_x2.png").pixels
    both = read_photo(tmp_path / "in" / "a_x2_compare.png").pixels
    assert np.array_equal(both[:, :160], resize_array(_coffee(), 128, 160))
    assert np.array_equal(both[:, 160:], result)
    again = upscale_files([tmp_path / "in"], None, engine, options=FileOptions(existing="skip"), quiet=True)
    assert [file.status for file in again.files] == ["skipped"], "neither is taken for a photo"


def test_a_comparison_replaces_nothing_unasked(engine: Engine, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", Photo(_coffee()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_x2_compare.png").write_text("precious")
    options = FileOptions(compare=True)
    summary = upscale_files([tmp_path / "a.png"], tmp_path / "out", engine, options=options, quiet=True)
    assert "exists already" in summary.files[0].reason
    assert (tmp_path / "out" / "a_x2_compare.png").read_text() == "precious"


@pytest.mark.parametrize("option", ["compare", "consistency"])
def test_what_needs_the_whole_result_is_refused_for_huge_ones(engine: Engine, option: str, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", Photo(_coffee()))
    options = FileOptions(in_memory=1000, **{option: True})
    summary = upscale_files([tmp_path / "a.png"], tmp_path / "out", engine, options=options, quiet=True)
    assert "too large for" in summary.files[0].reason


# Pipes ----------------------------------------------------------------------------------------------------


def _piped(data: bytes, engine: Engine, output: str | None = "-", **options: object) -> tuple[bytes, int]:
    stdout = io.BytesIO()
    chosen = FileOptions(**options)  # type: ignore[arg-type]
    summary = upscale_piped("-", output, engine, stdin=io.BytesIO(data), stdout=stdout, options=chosen)
    return stdout.getvalue(), summary.exit_code


@pytest.mark.parametrize("format", [None, "jpeg", "tiff"])
@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_bytes_in_and_bytes_out(engine: Engine, format: str | None, in_memory: int) -> None:
    data = encode(Photo(_coffee()), "png")
    out, code = _piped(data, engine, format=format, in_memory=in_memory)
    assert code == 0
    assert out == encode(upscale_photo(decode(data), engine), format or "png")


def test_a_pipe_into_a_file_and_a_file_into_a_pipe(engine: Engine, tmp_path: Path) -> None:
    data = encode(Photo(_coffee()), "png")
    assert _piped(data, engine, str(tmp_path / "b.webp"), lossless=True) == (b"", 0)
    assert read_photo(tmp_path / "b.webp").width == 160
    (tmp_path / "a.png").write_bytes(data)
    stdout = io.BytesIO()
    upscale_piped(str(tmp_path / "a.png"), "-", engine, stdin=io.BytesIO(), stdout=stdout)
    assert decode(stdout.getvalue()).width == 160


def test_what_is_wrong_with_a_piped_photo_is_said_of_stdin(engine: Engine) -> None:
    summary = upscale_piped("-", "-", engine, stdin=io.BytesIO(b"not a photo"), stdout=io.BytesIO())
    assert (summary.files[0].source, summary.exit_code) == ("stdin", 3)
    assert "/" not in summary.files[0].reason
    with pytest.raises(InputError, match="no photo on it"):
        _piped(b"", engine)
    assert _piped(b"x" * 5000, engine, limits=Limits(max_bytes=4000)) == (b"", 3)


def test_the_command_line_puts_nothing_but_the_picture_on_stdout(tmp_path: Path) -> None:
    data = encode(Photo(_coffee()), "png")
    options = ["-n", "bicubic", "--width", "200", "--tta", "--consistency", "-f", "tiff", "--json"]
    command = [sys.executable, "-m", "ray_sr.cli", "upscale", "-", "-o", "-", *options]
    done = subprocess.run(command, input=data, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (decode(done.stdout).width, decode(done.stdout).height) == (200, 160)
    assert json.loads(done.stderr)["files"][0]["consistency_db"] > 40


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-", "-o", "-"], 3, "stdin: "),
        (["-"], 2, "name one with -o"),
        (["-", "a.png", "-o", "x"], 2, "stands for one photo"),
        (["a.png", "-o", "-", "--compare"], 2, "no place on stdout"),
        (["-", "-o", "-", "--ray"], 2, "exclude each other"),
        (["a.png", "--ray"], 2, "-o OUT"),
        (["a.png", "-o", "out", "--ray", "--compare"], 2, "exclude each other"),
        (["a.png", "--width", "0"], 2, "--width"),
        (["a.png", "--width", "9", "-s", "2"], 2, "excludes --width"),
        (["a.png", "-t", "9"], 2, "--tile"),
        (["a.png", "-d", "nonsense"], 4, "device nonsense"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n\x1a\nand no more")))
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "-n", "bicubic", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert words in err
    assert out == ""
    assert "Traceback" not in err
