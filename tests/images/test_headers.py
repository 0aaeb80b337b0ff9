"""Damaged, oversized, animated and foreign files: refused with the right reason, never with another error."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ray_sr.images import Limits, PhotoError, decode, read_photo, scan_header, sniff
from tests.image_files import (
    GIF,
    JPEG,
    PNG,
    TIFF,
    WEBP,
    chunk,
    exif_block,
    ihdr,
    noise,
    png,
    saved,
    smooth,
    tiff,
)
from tests.shared_data import shared_folder

LENIENT = Limits(strict=False)


def reason_of(data: bytes, limits: Limits | None = None) -> str:
    """Reason of the refusal, whose message must be one line."""
    with pytest.raises(PhotoError) as caught:
        decode(data, limits or Limits())
    assert "\n" not in str(caught.value)
    return caught.value.reason


def animated_webp(**first: object) -> bytes:
    frames = [Image.fromarray(noise(8, 8, seed=i)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], **first)
    return buffer.getvalue()


def with_scans(count: int) -> bytes:
    """A gray JPEG whose only scan is repeated."""
    data = saved(smooth(8, 8), "jpeg", "L")
    at = data.index(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    data = saved(smooth(16, 16), "jpeg")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


WRONG_CRC = ihdr(4, 3) + chunk(b"IDAT", zlib.compress(bytes(15)), crc=7) + chunk(b"IEND")
LOOP = tiff(6, 5, bytes(30), following=38)
REFUSED = {
    "empty": (b"", "image-corrupt"),
    "one byte": (b"\x89", "unsupported-media-type"),
    "text": (b"hello, world", "unsupported-media-type"),
    "html": (b"<html><body>404</body></html>", "unsupported-media-type"),
    "utf-16": (b"\xff\xfea\0b\0", "unsupported-media-type"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported-media-type"),
    "gif": (GIF, "unsupported-media-type"),
    "bmp": (saved(noise(4, 4), "bmp"), "unsupported-media-type"),
    "png signature": (PNG[:8], "image-corrupt"),
    "png cut": (PNG[: len(PNG) // 2], "image-corrupt"),
    "png cut in header": (PNG[:20], "image-corrupt"),
    "png without end": (PNG[:-12], "image-corrupt"),
    "png without pixels": (ihdr(4, 3) + chunk(b"IEND"), "image-corrupt"),
    "png width 0": (png(size=(0, 3)), "image-corrupt"),
    "png crc of pixels": (WRONG_CRC, "image-corrupt"),
    "png crc of colours": (png(chunk(b"gAMA", b"\0\0\xb1\x8f", crc=7)), "image-corrupt"),
    "png depth 3": (png(depth=3), "image-corrupt"),
    "png without palette": (png(color=3), "image-corrupt"),
    "png rows missing": (ihdr(4, 9) + png()[33:], "image-corrupt"),
    "png filter 9": (ihdr(1, 1) + chunk(b"IDAT", zlib.compress(b"\x09\0")) + chunk(b"IEND"), "image-corrupt"),
    "png not deflate": (ihdr(4, 3) + chunk(b"IDAT", b"nonsense") + chunk(b"IEND"), "image-corrupt"),
    "png bomb": (ihdr(40000, 40000, 1) + png()[33:], "image-too-large"),
    "png side": (ihdr(2**31 - 1, 1) + png()[33:], "image-too-large"),
    "png of 2**31": (ihdr(2**31, 1) + png()[33:], "image-corrupt"),
    "png of many comments": (png(*[chunk(b"tEXt", b"a\0b")] * 5000), "image-corrupt"),
    "apng": (png(chunk(b"acTL", struct.pack(">II", 3, 0))), "animated-image"),
    "hdr": (png(chunk(b"cICP", b"\x09\x10\0\1")), "unsupported-image"),
    "jpeg start": (b"\xff\xd8\xff", "image-corrupt"),
    "jpeg cut": (JPEG[: len(JPEG) // 2], "image-corrupt"),
    "jpeg cut, with end": (JPEG[: -len(JPEG) // 3] + b"\xff\xd9", "image-corrupt"),
    "jpeg without end": (JPEG[:-2], "image-corrupt"),
    "jpeg taller than its data": (jpeg_of_size(16, 900), "image-corrupt"),
    "jpeg bomb": (jpeg_of_size(65500, 65500), "image-too-large"),
    "jpeg height 0": (jpeg_of_size(16, 0), "image-corrupt"),
    "jpeg 12 bits": (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "unsupported-image"),
    "jpeg without tables": (JPEG.replace(b"\xff\xdb", b"\xff\xed"), "image-corrupt"),
    "jpeg scan bomb": (with_scans(65), "unsupported-image"),
    "webp cut": (WEBP[: len(WEBP) // 2], "image-corrupt"),
    "webp riff only": (WEBP[:12], "image-corrupt"),
    "webp size lies": (WEBP[:4] + struct.pack("<I", 1 << 30) + WEBP[8:], "image-corrupt"),
    "webp animated": (animated_webp(), "animated-image"),
    "webp bomb": (
        b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
        "image-too-large",
    ),
    "tiff cut": (TIFF[:-20], "image-corrupt"),
    "tiff strip cut": (tiff(6, 50000, bytes(30)), "image-corrupt"),
    "tiff loop": (LOOP, "image-corrupt"),
    "tiff float": (tiff(6, 5, bytes(120), depth=32, extra={339: 3}), "unsupported-image"),
    "tiff pages": (
        saved(noise(4, 4), "tiff", save_all=True, append_images=[Image.new("L", (5, 5))]),
        "animated-image",
    ),
    "tiff 6 channels": (tiff(2, 2, bytes(24), channels=6, extra={338: 0}), "unsupported-image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    data, reason = REFUSED[name]
    limits = Limits(max_pixels=1 << 27)
    assert reason_of(data, limits) == reason


def test_made_up_files_without_the_fault_are_accepted() -> None:
    for data in (png(), png(color=6), PNG, JPEG, WEBP, TIFF, with_scans(1), jpeg_of_size(16, 16)):
        assert decode(data).pixels.size
    assert decode(png(chunk(b"acTL", struct.pack(">II", 1, 0)))).pixels.size


def test_limits_are_checked_on_the_header() -> None:
    size = len(PNG)
    assert reason_of(PNG, Limits(max_bytes=size - 1)) == "payload-too-large"
    assert reason_of(PNG, Limits(max_pixels=1599)) == "image-too-large"
    assert reason_of(PNG, Limits(max_side=39)) == "image-too-large"
    assert reason_of(JPEG, Limits(formats=("png",))) == "unsupported-media-type"
    assert decode(PNG, Limits(max_bytes=size, max_pixels=1600, max_side=40, formats=("png",))).width == 40


def test_lenient_reading_forgives_what_costs_no_pixels() -> None:
    assert np.array_equal(decode(PNG[:-12], LENIENT).pixels, decode(PNG).pixels)
    assert decode(png(chunk(b"tEXt", b"a\0b", crc=7)), LENIENT).width == 4
    assert reason_of(PNG[:60], LENIENT) == "image-corrupt"
    assert reason_of(WEBP[: len(WEBP) // 2], LENIENT) == "image-corrupt"


def test_bytes_behind_the_picture_are_ignored() -> None:
    for data in (PNG, JPEG, WEBP):
        assert np.array_equal(decode(data + b"PK\3\4<?php ?>").pixels, decode(data).pixels)


def test_scan_header_reads_what_pillow_reads() -> None:
    for format in ("png", "jpeg", "webp", "tiff"):
        for lossless in (False, True):
            data = saved(noise(31, 57), format, lossless=lossless)
            header = scan_header(data)
            assert (header.format, header.width, header.height) == (format, 57, 31)
            assert (header.frames, header.complete) == (1, True)
            assert sniff(data) == format
    assert scan_header(animated_webp()).frames == 3
    assert scan_header(saved(smooth(32, 32), "jpeg", progressive=True)).scans > 3
    big = scan_header(saved(noise(31, 57), "tiff", big_tiff=True))
    assert (big.width, big.height, big.depth, big.channels) == (57, 31, 8, 3)
    with pytest.raises(PhotoError):
        scan_header(GIF)


def test_the_thumbnail_page_of_a_tiff_is_passed_over() -> None:
    thumbnail = tiff(2, 1, bytes(2), extra={254: 1})
    picture = tiff(3, 2, bytes(range(6)))
    first = struct.unpack_from("<I", picture, 4)[0] + len(thumbnail)
    moved = bytearray(picture)
    moved[4:8] = bytes(4)
    at = moved.index(struct.pack("<HHII", 273, 4, 1, 8)) + 8
    moved[at : at + 4] = struct.pack("<I", 8 + len(thumbnail))
    linked = tiff(2, 1, bytes(2), extra={254: 1}, following=first)
    photo = decode(linked + bytes(moved))
    assert photo.pixels[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff"])
def test_damage_never_raises_anything_but_photo_error(name: str) -> None:
    whole = {
        "png": PNG,
        "jpeg": saved(smooth(64, 64), "jpeg", exif=exif_block(6)),
        "webp": WEBP,
        "tiff": TIFF,
    }
    allowed = {"accepted", *(reason for _, reason in REFUSED.values())}
    rng = np.random.default_rng(5)
    for round_ in range(250):
        data = bytearray(whole[name])
        span = len(data) if round_ % 2 else 80
        for at in rng.integers(4, span, 1 + round_ % 5):
            data[at] = rng.integers(256)
        cut = rng.integers(1, len(data)) if round_ % 7 == 0 else len(data)
        limits = Limits(max_pixels=1 << 20, strict=bool(round_ % 3))
        try:
            outcome = "accepted" if decode(bytes(data[:cut]), limits).pixels.size <= 3 << 20 else "too large"
        except PhotoError as error:
            outcome = error.reason if str(error).isprintable() else "more than one line"
        assert outcome in allowed


def test_the_reason_survives_a_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PhotoError("too large", "image-too-large")))  # noqa: S301
    assert (str(error), error.reason) == ("too large", "image-too-large")


def test_odd_files_of_the_wild_end_as_expected() -> None:
    folder = shared_folder("corpus/sharp")
    refused = {
        "65536-uint32-limit.png": "image-too-large",
        "truncated.jpg": "image-corrupt",
        "truncated.png": "image-corrupt",
        "corrupt-header.jpg": "image-corrupt",
        "animated-loop-3.webp": "animated-image",
        "rotating-squares.webp": "animated-image",
        "Crash_test.gif": "unsupported-media-type",
        "relax_tileparts.jp2": "unsupported-media-type",
    }
    for name, reason in refused.items():
        assert reason_of((folder / name).read_bytes()) == reason, name
    kept = {"16-bit-grey-alpha.png": (16, 1, True), "p3.png": (8, 3, True), "bonne.geo.tif": (8, 1, False)}
    for name, kind in kept.items():
        photo = read_photo(folder / name)
        assert (photo.depth, photo.channels, photo.alpha is not None) == kind, name
    lab = read_photo(folder / "cielab-dagams.tiff")
    assert (lab.depth, lab.channels, "lab-converted" in lab.warnings) == (16, 3, True)
