"""Orientation, EXIF, XMP, ICC and density on their way through every format, read back by Pillow."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import ImageOps

from ray_sr.images import Limits, Photo, decode, encode, read_photo
from tests.image_files import GRAY_PROFILE, SRGB, chunk, exif_block, noise, opened, png, saved, smooth, tiff
from tests.shared_data import shared_folder

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:rights="me"/></x:xmpmeta>'
LENIENT = Limits(strict=False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
def test_turned_once_and_never_again(format: str, orientation: int) -> None:
    if format == "tiff":
        data = saved(noise(5, 8), format, tiffinfo={0x0112: orientation})
    else:
        data = saved(noise(5, 8), format, lossless=True, exif=exif_block(orientation))
    expected = np.asarray(ImageOps.exif_transpose(opened(data)))
    photo = decode(data)
    assert np.array_equal(photo.pixels, expected)
    for result in ("png", "webp", "tiff"):
        again = encode(photo, result, lossless=True)
        assert np.array_equal(decode(again).pixels, expected)
        assert opened(again).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_exif_survives_upright_without_thumbnail_and_with_the_new_size(format: str, order: str) -> None:
    thumbnail = saved(noise(8, 8), "jpeg")
    block = exif_block(6, order, thumbnail)
    photo = decode(saved(smooth(24, 16), format, exif=block))
    assert (photo.width, photo.height) == (24, 16)
    assert photo.exif is not None
    assert thumbnail[:20] not in photo.exif
    assert len(photo.exif) < len(block) - len(thumbnail)
    exif = opened(encode(photo, format)).getexif()
    assert (exif[0x0112], exif[0x010F], exif[0x8298]) == (1, "ACME", "(c) A. Photographer")
    assert set(exif) == {0x010F, 0x0112, 0x8298, 0x8769, 0x8825}
    assert dict(exif.get_ifd(0x8769)) == {0xA002: 24, 0xA003: 16}
    assert exif.get_ifd(0x8825)


def test_a_thumbnail_amid_other_values_is_blanked() -> None:
    block = exif_block(1, "<", b"thumbnail")
    gps = struct.pack("<HHI", 0, 1, 4)
    at = block.index(gps)
    moved = struct.pack("<HHII", 0, 1, 8, len(block))
    photo = decode(saved(smooth(8, 8), "jpeg", exif=block[:at] + moved + block[at + 12 :] + b"position"))
    assert photo.exif is not None
    assert photo.exif.endswith(b"position")
    assert b"thumbnail" not in photo.exif


def test_large_sizes_fit_into_exif() -> None:
    photo = Photo(np.zeros((1, 70000, 1), np.uint8), exif=exif_block())
    assert opened(encode(photo)).getexif().get_ifd(0x8769)[0xA002] == 70000


def test_metadata_can_be_left_out() -> None:
    photo = Photo(smooth(8, 8), exif=exif_block(), xmp=XMP, icc=SRGB)
    for format in ("png", "jpeg", "webp"):
        image = opened(encode(photo, format, metadata="copyright"))
        assert dict(image.getexif()) == {0x8298: "(c) A. Photographer"}
        bare = encode(photo, format, metadata="none")
        for data in (encode(photo, format, metadata="copyright"), bare):
            assert b"tiff:Orientation" not in data
            assert decode(data).icc == SRGB
        assert not opened(bare).getexif()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_profile_xmp_and_density_survive_byte_for_byte(format: str) -> None:
    photo = Photo(smooth(9, 6), icc=SRGB, xmp=XMP, density=(300.0, 150.0))
    data = encode(photo, format)
    assert opened(data).info["icc_profile"] == SRGB
    back = decode(data)
    assert (back.icc, back.xmp) == (SRGB, XMP)
    assert back.warnings == ()
    assert back.density == pytest.approx((300, 150), abs=0.02)
    if format != "webp":
        assert opened(data).info["dpi"] == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_density_is_not_invented(format: str) -> None:
    data = encode(Photo(smooth(9, 6)), format)
    assert decode(data).density is None
    assert "dpi" not in opened(data).info


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_gray_profile_stays_with_gray_pixels(format: str) -> None:
    back = decode(encode(Photo(noise(6, 6, 1), icc=GRAY_PROFILE), format))
    assert (back.icc, back.channels) == (GRAY_PROFILE, 1)


def test_png_writes_profiles_that_libpng_would_refuse() -> None:
    odd = struct.pack(">I", len(SRGB) + 1) + SRGB[4:] + b"x"
    assert decode(encode(Photo(noise(4, 4), icc=odd))).icc == odd


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize(
    "profile",
    [b"x" * 300, SRGB[:400], GRAY_PROFILE, SRGB[:36] + b"zzzz" + SRGB[40:]],
    ids=["no profile", "cut", "gray", "no signature"],  # the bytes themselves hold the time they were made at
)
def test_profile_that_does_not_fit_is_dropped_with_a_warning(format: str, profile: bytes) -> None:
    photo = decode(saved(noise(6, 6), format, icc_profile=profile))
    assert photo.icc is None
    assert "icc-dropped" in photo.warnings


def test_profile_bomb_is_dropped() -> None:
    bomb = chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(50 << 20)))
    photo = decode(png(bomb), LENIENT)
    assert (photo.icc, photo.warnings) == (None, ("icc-dropped",))


def test_broken_exif_is_dropped_but_still_turns() -> None:
    whole = exif_block(6)
    cut = whole[: len(whole) - 30]
    loop = bytearray(whole)
    at = whole.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    loop[at : at + 4] = struct.pack("<I", 8)
    for block in (cut, bytes(loop)):
        photo = decode(saved(smooth(8, 16), "jpeg", exif=block), LENIENT)
        assert (photo.width, photo.height, photo.exif) == (8, 16, None)
        assert "exif-broken" in photo.warnings
    photo = decode(saved(smooth(8, 16), "jpeg", exif=b"garbage"), LENIENT)
    assert (photo.width, photo.exif, photo.warnings) == (16, None, ("exif-broken",))


def test_invalid_orientation_is_ignored_and_reset() -> None:
    photo = decode(saved(smooth(8, 16), "jpeg", exif=exif_block(99)))
    assert photo.width == 16
    assert opened(encode(photo)).getexif()[0x0112] == 1


def test_the_same_scene_in_eight_orientations() -> None:
    folder = shared_folder("corpus/sharp")
    for name in ("Landscape", "Portrait"):
        scenes = [read_photo(folder / f"{name}_{i}.jpg") for i in range(2, 9)]
        assert {scene.pixels.shape for scene in scenes} == {scenes[0].pixels.shape}
        for scene in scenes[1:]:
            assert np.abs(scene.pixels.astype(int) - scenes[0].pixels).mean() < 5


def test_gain_map_is_dropped_with_a_warning() -> None:
    data = saved(smooth(8, 8), "jpeg")
    body = b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>"
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body
    assert decode(data[:2] + segment + data[2:]).warnings == ("gainmap-dropped",)


def test_density_turns_with_the_picture_and_nonsense_is_dropped() -> None:
    turned = decode(saved(smooth(8, 16), "jpeg", dpi=(300, 100), exif=exif_block(6)))
    assert turned.density == (100, 300)
    absurd = chunk(b"pHYs", struct.pack(">IIB", 2**31 - 1, 1, 1))
    assert decode(png(absurd)).density is None


def test_webp_announces_alpha_beside_exif() -> None:
    rgba = noise(6, 5, 4)
    photo = Photo(rgba[..., :3], alpha=rgba[..., 3], exif=exif_block())
    for lossless in (False, True):
        data = encode(photo, "webp", lossless=lossless)
        assert data[12:16] == b"VP8X"
        assert data[20] == 0x18
        assert opened(data).mode == "RGBA"


def test_exif_of_a_tiff_is_dropped_with_a_warning() -> None:
    photo = decode(tiff(2, 1, bytes(2), extra={0x8769: 8}))
    assert (photo.exif, photo.warnings) == (None, ("exif-dropped",))
