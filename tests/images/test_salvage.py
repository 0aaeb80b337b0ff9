"""Damaged files: what is read of them, and that it is said how far."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from ray_sr.images import Limits, PhotoError, decode
from tests.image_files import JPEG, chunk, ihdr, noise, png, saved, smooth

LENIENT = Limits(strict=False)
SAMPLINGS = {"4:4:4": 8, "4:2:2": 8, "4:2:0": 16}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_cut_jpeg_is_read_down_to_the_row_that_is_told(sampling: str) -> None:
    data = saved(noise(128, 160), "jpeg", quality=90, subsampling=sampling)
    whole = decode(data).pixels
    told = []
    for cut in (2, 100, len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        photo = decode(data[:-cut], LENIENT)
        (word,) = photo.warnings
        rows = (
            128 if word == "end-missing" else int(word.removeprefix("missing-below-row-").partition("-of-128")[0])
        )
        told.append(rows)
        # Colour that is stored coarsely is spread over the border of the last whole row of blocks.
        border = 1 if sampling == "4:2:0" and rows < 128 else 0
        assert np.array_equal(photo.pixels[: rows - border], whole[: rows - border])
        following = slice(rows, rows + SAMPLINGS[sampling])
        assert rows == 128 or not np.array_equal(photo.pixels[following], whole[following])
        with pytest.raises(PhotoError):
            decode(data[:-cut])
    assert told[0] == 128
    assert sorted(told, reverse=True) == told
    assert len(set(told)) == 5


def test_a_jpeg_that_was_cut_and_ended_again_tells_too() -> None:
    data = saved(noise(64, 64), "jpeg", quality=90)
    photo = decode(data[: len(data) // 2] + b"\xff\xd9", LENIENT)
    assert photo.warnings[0].startswith("missing-below-row-")


@pytest.mark.parametrize("room", [b"\0", b"\xff"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 8}])
def test_a_download_that_was_broken_off_goes_as_far_as_its_bytes(room: bytes, options: dict[str, object]) -> None:
    """Some programs make the file in its full size first."""
    data = saved(noise(128, 160), "jpeg", quality=90, **options)
    for share in (0.3, 0.6):
        cut = data[: int(share * len(data))]
        padded = cut + room * (len(data) - len(cut))
        short, photo = decode(cut, LENIENT), decode(padded, LENIENT)
        assert photo.warnings == short.warnings
        assert short.warnings[0].split("-")[0] in ("missing", "coarse")
        assert np.array_equal(photo.pixels, short.pixels)
        with pytest.raises(PhotoError, match="cut short"):
            decode(padded)


def nearly_empty_page(seed: int) -> bytes:
    """Of its even blocks, 512 are 128 bytes of zeros."""
    page = np.full((512, 1024), 250, np.uint8)
    page[:64, :64] = noise(64, 64, 1, seed=seed)[..., 0]
    return saved(page, "jpeg", optimize=True)


def test_even_regions_that_are_stored_as_zeros_are_not_taken_for_room() -> None:
    data = next(data for data in map(nearly_empty_page, range(100)) if data.endswith(b"\0\xff\xd9"))[:-2]
    assert len(data) - len(data.rstrip(b"\0\xff")) > 1024
    whole = decode(data + b"\xff\xd9")
    photo = decode(data, LENIENT)
    assert (photo.warnings, whole.warnings) == (("end-missing",), ())
    assert np.array_equal(photo.pixels, whole.pixels)


def test_a_cut_progressive_jpeg_is_coarse_below_the_row() -> None:
    data = saved(smooth(128, 128), "jpeg", quality=90, progressive=True)
    whole = decode(data).pixels.astype(int)
    photo = decode(data[: len(data) * 3 // 4], LENIENT)
    assert photo.warnings[0].startswith(("coarse-below-row-", "end-missing"))
    assert np.abs(photo.pixels - whole).max() < 100


def test_a_jpeg_of_which_nothing_is_left_is_refused() -> None:
    at = JPEG.index(b"\xff\xda")
    for data in (JPEG[:at], JPEG[: at + 14]):
        with pytest.raises(PhotoError):
            decode(data, LENIENT)


@pytest.mark.parametrize("where", [b"\xff\xdb", b"\xff\xc0", b"\xff\xda", b"\xff\xd9"])
def test_junk_between_markers_is_a_warning(where: bytes) -> None:
    data = saved(smooth(40, 40), "jpeg")
    at = data.rindex(where)
    # A scan ends in ones, so before the end only junk that does not is told from it.
    for junk in (b"\x12\x34\x56", bytes(50)) if where == b"\xff\xd9" else (b"\1\2\3", bytes(50), b"\xff\xd0"):
        photo = decode(data[:at] + junk + data[at:])
        assert photo.warnings == ("junk-between-markers",)
        assert np.array_equal(photo.pixels, decode(data).pixels)


def test_no_junk_is_seen_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    for seed in range(60):
        height, width = rng.integers(3, 40, 2)
        options = {"quality": int(rng.integers(20, 99)), "optimize": bool(seed % 2), "subsampling": seed % 3}
        assert decode(saved(noise(height, width, seed=seed), "jpeg", **options)).warnings == ()
    assert decode(saved(np.full((64, 64, 3), 255, np.uint8), "jpeg", optimize=True)).warnings == ()


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"eXIf", b"prVt"])
def test_wrong_checksums_of_metadata_are_warnings(kind: bytes) -> None:
    body = struct.pack(">IIB", 11811, 11811, 1) if kind == b"pHYs" else b"Comment\0hi"
    photo = decode(png(chunk(kind, body, crc=7)))
    assert "bad-crc-of-metadata" in photo.warnings
    assert np.array_equal(photo.pixels, decode(png()).pixels)


@pytest.mark.parametrize("kind", [b"tRNS", b"iCCP", b"gAMA", b"cHRM", b"cICP", b"sRGB"])
def test_wrong_checksums_of_what_is_seen_are_not(kind: bytes) -> None:
    with pytest.raises(PhotoError, match="bad-crc"):
        decode(png(chunk(kind, bytes(32), crc=7)))


@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint8), (3, np.uint8), (4, np.uint8)])
def test_a_cut_png_is_read_down_to_the_row_that_is_told(channels: int, kind: type) -> None:
    pixels = noise(60, 50, channels, kind)
    data = saved(pixels, "png")
    for share in (0.2, 0.5, 0.9):
        photo = decode(data[: int(share * len(data))], LENIENT)
        rows = int(photo.warnings[0].removeprefix("missing-below-row-").partition("-of-60")[0])
        assert 60 * (share - 0.1) <= rows < 60
        assert np.array_equal(photo.pixels[:rows], pixels[:rows, :, : photo.channels])
        assert not photo.pixels[rows + 1 :].any()
    assert decode(data[:-12], LENIENT).warnings == ("end-missing",)


@pytest.mark.parametrize("room", [b"\0", b"\xff"])
@pytest.mark.parametrize("pieces", [1, 20])
def test_a_png_that_was_broken_off_goes_as_far_as_its_bytes(room: bytes, pieces: int) -> None:
    pixels = noise(60, 50)
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    step = -(-len(stream) // pieces)
    idat = b"".join(chunk(b"IDAT", stream[at : at + step]) for at in range(0, len(stream), step))
    data = ihdr(50, 60, 8, 2) + idat + chunk(b"IEND")
    for share in (0.3, 0.6):
        cut = data[: int(share * len(data))]
        padded = cut + room * (len(data) - len(cut))
        short, photo = decode(cut, LENIENT), decode(padded, LENIENT)
        assert photo.warnings == short.warnings
        assert short.warnings[0].startswith("missing-below-row-")
        assert np.array_equal(photo.pixels, short.pixels)
        with pytest.raises(PhotoError):
            decode(padded)
    assert decode(data[:-12] + room * 4096, LENIENT).warnings == ("end-missing",)


def test_a_png_with_a_wrong_checksum_of_pixels_is_read_where_they_unpack() -> None:
    rows = zlib.compress(bytes(15))
    data = ihdr(4, 3) + chunk(b"IDAT", rows, crc=7) + chunk(b"IEND")
    assert decode(data, LENIENT).warnings == ("damaged",)
    with pytest.raises(PhotoError):
        decode(data)


@pytest.mark.parametrize("format", ["webp", "tiff", "avif"])
def test_of_cut_files_of_other_formats_it_is_said_that_nothing_is_read(format: str) -> None:
    data = saved(noise(60, 50), format)
    for share in (0.5, 0.9):
        with pytest.raises(PhotoError) as refused:
            decode(data[: int(share * len(data))], LENIENT)
        assert "\n" not in str(refused.value)
        assert any(words in str(refused.value) for words in ("nothing is read", "cut short"))
