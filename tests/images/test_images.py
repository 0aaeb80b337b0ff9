"""Pixels in and out of files, against Pillow, littleCMS and the PngSuite truth; safe reading and writing."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ray_sr.errors import InputError, ResourceError
from ray_sr.images import (
    Limits,
    Photo,
    PhotoError,
    check_result_size,
    decode,
    encode,
    left_out,
    read_photo,
    rgb8,
    write_bytes,
    write_photo,
)
from tests.image_files import GRAY_PROFILE, PNG, chunk, exif_block, noise, opened, png, saved, smooth, tiff
from tests.shared_data import shared_folder

# Right pixels ---------------------------------------------------------------------------------------------


def test_pngsuite_is_exact_and_its_broken_files_are_refused() -> None:
    folder = shared_folder("corpus/pngsuite")
    truth = np.load(folder / "truth_rgba.npz")
    exact, refused = 0, 0
    for path in sorted((folder / "png").glob("*.png")):
        if path.name.startswith("x"):
            with pytest.raises(PhotoError):
                read_photo(path)
            refused += 1
            continue
        photo = read_photo(path)
        opaque = np.full(photo.pixels.shape[:2], np.iinfo(photo.pixels.dtype).max, photo.pixels.dtype)
        alpha = opaque if photo.alpha is None else photo.alpha
        rgba = np.dstack([np.broadcast_to(photo.pixels, (*opaque.shape, 3)), alpha])
        expected = truth[path.stem].reshape(rgba.shape)
        assert photo.pixels.dtype == expected.dtype, path.name
        assert np.array_equal(rgba, expected), path.name
        assert photo.channels == (1 if path.name[3:6] in ("n0g", "i0g", "n4a", "i4a") else photo.channels)
        exact += 1
    assert (exact, refused) == (161, 14)


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_lossless_files_are_read_exactly(format: str) -> None:
    pixels = noise(13, 17)
    photo = decode(saved(pixels, format, lossless=True))
    assert np.array_equal(photo.pixels, pixels)
    assert (photo.alpha, photo.width, photo.height, photo.depth, photo.channels) == (None, 17, 13, 8, 3)
    assert photo.warnings == ()


@pytest.mark.parametrize(
    ("format", "mode", "channels", "alpha"),
    [
        ("png", "1", 1, False),
        ("png", "L", 1, False),
        ("png", "LA", 1, True),
        ("png", "P", 3, False),
        ("png", "RGBA", 3, True),
        ("tiff", "1", 1, False),
        ("tiff", "L", 1, False),
        ("tiff", "P", 3, False),
        ("tiff", "RGBA", 3, True),
    ],
)
def test_each_kind_of_pixel_becomes_gray_or_rgb(format: str, mode: str, channels: int, alpha: bool) -> None:
    data = saved(noise(9, 7, 4 if alpha else 3), format, mode)
    photo = decode(data)
    expected = np.asarray(opened(data).convert("RGBA"))
    assert (photo.channels, photo.alpha is not None) == (channels, alpha)
    assert np.array_equal(np.broadcast_to(photo.pixels, (9, 7, 3)), expected[..., :3])
    assert photo.alpha is None or np.array_equal(photo.alpha, expected[..., 3])


def test_jpeg_is_what_libjpeg_makes_of_it() -> None:
    for mode, channels in (("RGB", 3), ("L", 1)):
        data = saved(smooth(40, 50), "jpeg", mode, quality=90)
        photo = decode(data)
        expected = np.asarray(opened(data)).reshape(40, 50, channels)
        assert photo.channels == channels
        assert np.abs(photo.pixels.astype(int) - expected).max() <= 1


def test_depth_follows_the_file_and_not_its_values() -> None:
    low = noise(5, 6, 3, np.uint16) % 200
    photo = decode(encode(Photo(low)))
    assert photo.depth == 16
    assert np.array_equal(photo.pixels, low)


def test_transparent_gray_and_palette_entries_become_alpha() -> None:
    gray = decode(png(chunk(b"tRNS", b"\0\0"), depth=4))
    assert gray.channels == 1
    assert gray.alpha is not None
    assert not gray.alpha.any()
    palette = decode(png(chunk(b"PLTE", b"\x0a\x14\x1e"), chunk(b"tRNS", b"\x80"), color=3))
    assert palette.pixels[0, 0].tolist() == [10, 20, 30]
    assert palette.alpha is not None
    assert set(palette.alpha.ravel()) == {128}


@pytest.mark.parametrize("depth", [8, 16])
def test_premultiplied_tiff_comes_back_unmultiplied(depth: int) -> None:
    top = 2**depth - 1
    colors, alpha = [top * 3 // 4, top // 2, top // 5], top // 2
    premultiplied = [round(c * alpha / top) for c in colors]
    kind = np.uint8 if depth == 8 else np.dtype("<u2")
    samples = np.array([*premultiplied, alpha] * 6, kind).tobytes()
    photo = decode(tiff(3, 2, samples, depth=depth, channels=4, extra={338: 1}))
    assert photo.depth == depth
    assert np.abs(photo.pixels.astype(int) - colors).max() <= 2
    assert photo.alpha is not None
    assert set(photo.alpha.ravel()) == {alpha}


def test_cmyk_becomes_rgb_with_a_warning() -> None:
    data = saved(smooth(30, 30), "jpeg", "CMYK", quality=95)
    photo = decode(data)
    assert photo.channels == 3
    assert photo.icc is None
    assert "cmyk-converted" in photo.warnings
    white = decode(saved(np.full((8, 8, 3), 255, np.uint8), "jpeg", "CMYK"))
    assert white.pixels.min() >= 250


def test_cmyk_is_converted_by_its_profile_like_littlecms_does() -> None:
    path = shared_folder("corpus/sharp") / "Channel_digital_image_CMYK_color.jpg"
    photo = read_photo(path)
    source = Image.open(path)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(source.info["icc_profile"]))
    expected = ImageCms.profileToProfile(
        source,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert expected is not None
    assert np.abs(photo.pixels.astype(int) - np.asarray(expected)).max() <= 2


def test_rgb8_repeats_gray_rounds_16_bits_and_ignores_alpha() -> None:
    gray = noise(4, 5, 1)
    assert np.array_equal(rgb8(Photo(gray, alpha=gray[..., 0])), np.repeat(gray, 3, 2))
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    expected = np.rint(every.astype(np.float64) * 255 / 65535).astype(np.uint8)
    assert np.array_equal(rgb8(Photo(every)), np.repeat(expected, 3, 2))


def test_photo_refuses_arrays_of_another_layout() -> None:
    good = noise(4, 5)
    for pixels, alpha in [
        (good.astype(np.float32), None),
        (good[..., 0], None),
        (good[..., :2], None),
        (good[:0], None),
        (good, good),
        (good, good[..., 0].astype(np.uint16)),
    ]:
        with pytest.raises(ValueError):
            Photo(pixels, alpha=alpha)


# Encoding -------------------------------------------------------------------------------------------------


KINDS = [(f, k, c) for f in ("png", "tiff") for k in (np.uint8, np.uint16) for c in (1, 3)]


@pytest.mark.parametrize(("format", "kind", "channels"), [*KINDS, ("webp", np.uint8, 3)])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_round_trip_is_exact(format: str, kind: type, channels: int, with_alpha: bool) -> None:
    alpha = noise(21, 33, 1, kind, seed=1)[..., 0] if with_alpha else None
    photo = Photo(noise(21, 33, channels, kind), alpha=alpha)
    data = encode(photo, format, lossless=True)
    assert data == encode(photo, format, lossless=True)
    back = decode(data)
    assert back.pixels.dtype == photo.pixels.dtype
    assert np.array_equal(back.pixels, photo.pixels)
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        assert back.alpha is not None
        assert np.array_equal(back.alpha, alpha)
    assert left_out(photo, format) == ()


def test_png_is_what_pillow_reads() -> None:
    rgba = noise(9, 5, 4)
    photo = Photo(rgba[..., :3], alpha=rgba[..., 3])
    assert np.array_equal(np.asarray(opened(encode(photo))), rgba)


def test_16_bits_are_rounded_where_the_format_has_8() -> None:
    photo = Photo(noise(8, 8, 3, np.uint16), alpha=noise(8, 8, 1, np.uint16)[..., 0])
    back = decode(encode(photo, "webp", lossless=True))
    assert np.array_equal(back.pixels, rgb8(photo))
    assert left_out(photo, "webp") == ("depth-reduced",)
    assert left_out(photo, "jpeg") == ("depth-reduced", "alpha-flattened")


def test_jpeg_is_444_and_puts_transparent_pixels_on_the_background() -> None:
    pixels = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    data = encode(Photo(pixels, alpha=alpha), "jpeg", background=(0, 0, 255))
    image = opened(data)
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    shown = np.asarray(image).astype(int)
    assert np.abs(shown[:, :8] - (0, 0, 255)).max() <= 3
    assert np.abs(shown[:, 8:] - (255, 0, 0)).max() <= 3
    gray = Photo(np.zeros((8, 8, 1), np.uint8), alpha=np.zeros((8, 8), np.uint8))
    assert decode(encode(gray, "jpeg")).pixels.min() == 255


def test_quality_is_obeyed() -> None:
    photo = Photo(noise(64, 64))
    for format in ("jpeg", "webp"):
        assert len(encode(photo, format, quality=30)) < len(encode(photo, format, quality=95)) / 1.5


def test_what_a_format_cannot_hold_is_said() -> None:
    gray = Photo(noise(4, 4, 1), icc=GRAY_PROFILE, exif=exif_block())
    assert left_out(gray, "webp") == ("icc-dropped",)
    assert left_out(gray, "tiff") == ("exif-dropped",)
    assert left_out(gray, "jpeg") == ()
    assert decode(encode(gray, "webp")).icc is None
    assert left_out(Photo(noise(4, 4), icc=GRAY_PROFILE), "png") == ("icc-dropped",)
    large = Photo(noise(4, 4), xmp=b"x" * 70000)
    assert left_out(large, "jpeg") == ("xmp-dropped",)
    assert decode(encode(large, "jpeg")).xmp is None
    assert decode(encode(large, "png")).xmp == large.xmp


def test_results_over_the_side_of_a_format_are_refused_before_encoding() -> None:
    for format, side in (("webp", 16383), ("jpeg", 65500)):
        check_result_size(format, side, 1)
        with pytest.raises(PhotoError) as caught:
            encode(Photo(np.zeros((1, side + 1, 1), np.uint8)), format)
        assert caught.value.reason == "format-limit"
    check_result_size("png", 10**6, 1)
    with pytest.raises(InputError):
        encode(Photo(noise(2, 2)), "exe")


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (2, 3), (7, 5)])
def test_tiny_pictures_pass_through_every_format(size: tuple[int, int]) -> None:
    for format in ("png", "jpeg", "webp", "tiff"):
        assert decode(encode(Photo(noise(*size)), format)).pixels.shape == (*size, 3)


# Files ----------------------------------------------------------------------------------------------------


def test_read_photo_names_the_file_and_the_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(PNG[:100])
    expected = {
        "missing.png": "No such file",
        ".": "directory",
        "empty.png": "empty",
        "text.png": "not a picture",
        "cut.png": "cut short",
        "cut.png/x.png": "Not a directory",
        "new\nline.png": "No such file",
    }
    for name, words in expected.items():
        with pytest.raises(InputError, match=words) as caught:
            read_photo(tmp_path / name)
        assert str(caught.value).isprintable()
        assert Path(tmp_path / name).name.splitlines()[0] in str(caught.value)
    (tmp_path / "large.png").write_bytes(PNG)
    with pytest.raises(PhotoError, match="over the limit"):
        read_photo(tmp_path / "large.png", Limits(max_bytes=100))
    with pytest.raises(InputError, match="not a regular file"):
        read_photo("/dev/null")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".webp", ".jpg", ".JPEG"])
def test_write_photo_takes_the_format_from_the_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"Фото 日本 é{suffix}"
    photo = Photo(smooth(32, 48))
    write_photo(path, photo, lossless=True)
    back = read_photo(path)
    assert Image.open(path).format == {".p": "PNG", ".t": "TIFF", ".w": "WEBP", ".j": "JPEG"}[suffix.lower()[:2]]
    assert np.abs(back.pixels.astype(int) - photo.pixels).max() <= (4 if suffix.lower()[1] == "j" else 0)
    assert os.listdir(tmp_path) == [path.name]


def test_names_that_are_not_utf8_work(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    write_photo(os.fsdecode(path), Photo(noise(3, 3)))
    assert read_photo(os.fsdecode(path)).width == 3
    with pytest.raises(InputError) as caught:
        read_photo(os.fsdecode(path + b"x"))
    str(caught.value).encode("utf-8")


def test_failed_writing_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    photo = Photo(noise(3, 3))
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("file/a.png", "missing/a.png", "folder.png", "x" * 300 + ".png"):
        with pytest.raises(ResourceError) as caught:
            write_photo(tmp_path / name, photo)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(InputError, match=re.escape(".png")):
        write_photo(tmp_path / "a.xyz", photo)
    with pytest.raises(ResourceError):
        write_bytes("/dev/full", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the kernel stops the write half-way."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=re.escape(str(path))):
            write_photo(path, Photo(noise(100, 100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
