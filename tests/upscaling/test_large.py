"""Results that are written as they are made: the same pixels and the same bytes, in little memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_sr.errors import ModelError, ResourceError
from ray_sr.images import Photo, read_photo, write_photo
from ray_sr.images.resample import resize_array, resize_bands
from ray_sr.images.streaming import write_bands
from ray_sr.models import Bicubic
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions, upscale_files
from ray_sr.upscaling.opacity import spread_colour
from ray_sr.upscaling.results import Summary

KINDS = [
    (dtype, channels, alpha) for dtype in (np.uint8, np.uint16) for channels in (1, 3) for alpha in (False, True)
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability, tile=40)


def _photo(dtype: type, channels: int, alpha: bool, height: int = 70, width: int = 53) -> Photo:
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(3)
    opacity = rng.integers(0, top + 1, (height, width)).astype(dtype)
    opacity[: height // 2] = 0
    return Photo(
        rng.integers(0, top + 1, (height, width, channels)).astype(dtype),
        alpha=opacity if alpha else None,
        density=(300.0, 300.0),
        xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
    )


def _upscale(engine: Engine, source: Path, target: Path, scale: float | None, in_memory: int) -> Summary:
    options = FileOptions(in_memory=in_memory)
    return upscale_files([source], target, engine, scale=scale, options=options, quiet=True)


@pytest.mark.parametrize(("dtype", "channels", "alpha"), KINDS)
@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
def test_the_same_bytes_as_of_a_result_in_memory(
    engine: Engine, dtype: type, channels: int, alpha: bool, ending: str, tmp_path: Path
) -> None:
    write_photo(tmp_path / "a.tif", _photo(dtype, channels, alpha))
    held = _upscale(engine, tmp_path / "a.tif", tmp_path / f"held.{ending}", None, 1 << 30)
    streamed = _upscale(engine, tmp_path / "a.tif", tmp_path / f"streamed.{ending}", None, 0)
    assert (held.exit_code, streamed.exit_code) == (0, 0)
    assert streamed.files[0].warnings == held.files[0].warnings
    assert (tmp_path / f"streamed.{ending}").read_bytes() == (tmp_path / f"held.{ending}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", f"held.{ending}", f"streamed.{ending}"]


@pytest.mark.parametrize("scale", [0.3, 1, 1.5, 3.1])
def test_other_scales_are_resized_band_by_band(engine: Engine, scale: float, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", _photo(np.uint8, 3, True))
    _upscale(engine, tmp_path / "a.png", tmp_path / "held.png", scale, 1 << 30)
    _upscale(engine, tmp_path / "a.png", tmp_path / "streamed.png", scale, 0)
    assert (tmp_path / "streamed.png").read_bytes() == (tmp_path / "held.png").read_bytes()


@pytest.mark.parametrize("kind", ["opaque", "clear", "mask", "soft"])
def test_transparency_of_every_kind(engine: Engine, kind: str, tmp_path: Path) -> None:
    photo = _photo(np.uint8, 3, True, 600, 11)
    assert photo.alpha is not None
    photo.alpha[:] = {
        "opaque": np.full_like(photo.alpha, 255),
        "clear": np.zeros_like(photo.alpha),
        "mask": (photo.alpha > 99) * 255,
        "soft": photo.alpha,
    }[kind]
    write_photo(tmp_path / "a.png", photo)
    _upscale(engine, tmp_path / "a.png", tmp_path / "held.png", 2.7, 1 << 30)
    _upscale(engine, tmp_path / "a.png", tmp_path / "streamed.png", 2.7, 0)
    assert (tmp_path / "streamed.png").read_bytes() == (tmp_path / "held.png").read_bytes()


@pytest.mark.parametrize("size", [(31, 40), (200, 9), (7, 90), (64, 48), (1, 1)])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_resizing_in_bands_is_resizing(size: tuple[int, int], rows: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    bands = (image[top : top + rows] for top in range(0, 64, rows))
    assert np.array_equal(np.concatenate(list(resize_bands(bands, (64, 48), size))), resize_array(image, *size))


def test_colour_spreads_across_strips() -> None:
    """From the only visible pixel over the whole of a photo of many strips."""
    pixels = np.full((1100, 30, 3), 77, np.uint8)
    alpha = np.zeros((1100, 30), np.uint8)
    pixels[900, 20], alpha[900, 20] = (1, 2, 3), 9
    assert (spread_colour(pixels, alpha) == (1, 2, 3)).all()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    photo = _photo(np.uint8, 3, False)

    def broken() -> Iterator[tuple[np.ndarray, None]]:
        yield photo.pixels[:10], None
        raise ModelError("broken weights")

    for format in ("png", "jpeg", "tiff", "webp"):
        with pytest.raises(ModelError, match="broken weights"):
            write_bands(tmp_path / "a", photo, (70, 53), broken(), format=format)
    with pytest.raises(ResourceError, match="cannot be encoded"):
        write_bands(tmp_path / "a", photo, (99, 53), [(photo.pixels, None)], format="png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_a_full_disk_is_one_line(format: str, tmp_path: Path) -> None:
    """The encoder fails in the middle: the reason is told, and the one who feeds it does not wait for ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    photo = Photo(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    bands = [(photo.pixels[top : top + 9], None) for top in range(0, 900, 9)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ResourceError, match="cannot be"):
            write_bands(tmp_path / "a", photo, (900, 900), bands, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


MEASURED = """
    import resource, sys
    from ray_sr.models import Bicubic
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.files import upscale_files

    model = Bicubic(4)
    engine = Engine(model, model.capability)
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    upscale_files([sys.argv[1]], sys.argv[2], engine, quiet=True)
    before = peak()
    summary = upscale_files([sys.argv[3]], sys.argv[4], engine, quiet=True)
    assert summary.exit_code == 0, summary.files
    print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_result(tmp_path: Path) -> None:
    """A result of 12,000 x 9,000, 324 MB, from a photo of 20 MB."""
    write_photo(tmp_path / "small.png", Photo(np.zeros((450, 450, 3), np.uint8)))
    write_photo(tmp_path / "large.tif", Photo(np.zeros((2250, 3000, 3), np.uint8)))
    files = [tmp_path / name for name in ("small.png", "small_out.png", "large.tif", "out.png")]
    command = [sys.executable, "-c", textwrap.dedent(MEASURED), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300, "MiB: less than the result itself"
    assert read_photo(tmp_path / "out.png").pixels.shape == (9000, 12000, 3)
