"""AVIF, HEIC and JPEG XL, made and read by other libraries: pixels, turns, depth, limits and hostile headers."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ray_sr.images import Limits, Photo, PhotoError, check_result_size, decode, encode, scan_header, sniff
from ray_sr.images.exif import resize_exif
from tests.image_files import SRGB, exif_block, noise, opened, saved, smooth

AVIF = saved(smooth(48, 64), "avif", quality=100, subsampling="4:4:4")


def heic(pixels: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    height, width = pixels.shape[:2]
    names = {1: "L", 3: "RGB", 4: "RGBA"}
    picture = heif.from_bytes(mode or names[pixels.shape[2]], (width, height), pixels.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, quality=100, chroma=444, **options)
    return buffer.getvalue()


def jxl(pixels: np.ndarray, **options: object) -> bytes:
    plugin = pytest.importorskip("pillow_jxl")
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    encoder = plugin.Encoder(mode=mode, lossless=True, quality=100, num_threads=0, **options)
    height, width = pixels.shape[:2]
    return bytes(encoder(pixels.tobytes(), width, height, jpeg_encode=False, exif=None, jumb=None, xmp=None))


def with_property(data: bytes, kind: bytes, body: bytes) -> bytes:
    """The AVIF with one more property of its picture. All places are those of one item behind the meta box."""
    box = struct.pack(">I4s", 8 + len(body), kind) + body
    ipco, ipma = data.index(b"ipco") - 4, data.index(b"ipma") - 4
    end = ipco + struct.unpack_from(">I", data, ipco)[0]
    entry = ipma + 8 + 4 + 4 + 2
    count = data[entry]
    grown = bytearray(data)
    grown[entry] = count + 1
    last = entry + 1 + count
    grown[last:last] = bytes([0x80 | (count + 1)])
    grown[end:end] = box
    for name, more in ((b"meta", 1), (b"iprp", 1), (b"ipma", 1)):
        at = bytes(grown).index(name) - 4
        size = struct.unpack_from(">I", grown, at)[0]
        struct.pack_into(">I", grown, at, size + (1 if name == b"ipma" else len(box) + more))
    at = bytes(grown).index(b"ipco") - 4
    struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + len(box))
    places = bytes(grown).index(b"iloc")
    at = places + 4 + 4 + 4 + 2 + 2 + 2 + (2 if grown[places + 4] else 0)
    struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + len(box) + 1)
    return bytes(grown)


# AVIF -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0", "4:0:0"])
def test_avif_is_what_libavif_makes_of_it(sampling: str) -> None:
    data = saved(smooth(40, 50), "avif", quality=90, subsampling=sampling)
    photo = decode(data)
    expected = np.asarray(opened(data).convert("RGB")).astype(int)
    assert photo.channels == (1 if sampling == "4:0:0" else 3)
    assert np.abs(photo.pixels - expected).max() <= 3
    assert photo.warnings == ()


def test_avif_keeps_opacity_profile_and_exif() -> None:
    rgba = np.dstack([smooth(32, 40), noise(32, 40, 1)])
    data = saved(rgba, "avif", quality=100, icc_profile=SRGB, exif=exif_block(1))
    photo = decode(data)
    assert photo.alpha is not None
    assert np.abs(photo.alpha.astype(int) - np.asarray(opened(data))[..., 3]).max() <= 1
    assert photo.icc == SRGB
    back = decode(encode(photo, "avif", lossless=True))
    assert np.array_equal(back.pixels, photo.pixels)
    assert back.alpha is not None
    assert np.array_equal(back.alpha, photo.alpha)
    assert back.icc == SRGB
    assert photo.exif is not None
    assert back.exif == resize_exif(photo.exif, 40, 32)


def test_avif_is_read_by_libavif_with_its_exif_and_xmp() -> None:
    photo = Photo(smooth(24, 40), exif=exif_block(), xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", icc=SRGB)
    for alpha in (None, noise(24, 40, 1)[..., 0]):
        data = encode(Photo(photo.pixels, alpha, photo.icc, photo.exif, photo.xmp), "avif", lossless=True)
        image = opened(data)
        assert np.array_equal(np.asarray(image)[..., :3], photo.pixels)
        assert (image.info["xmp"], image.info["icc_profile"]) == (photo.xmp, SRGB)
        assert image.getexif()[0x010F] == "ACME"
        assert np.array_equal(decode(data).pixels, photo.pixels)


def test_sixteen_bits_become_twelve_and_reach_white() -> None:
    pixels = np.linspace(0, 65535, 64 * 48 * 3).reshape(48, 64, 3).round().astype(np.uint16)
    back = decode(encode(Photo(pixels), "avif", lossless=True))
    expected = np.rint(np.rint(pixels / 65535 * 4095) / 4095 * 65535).astype(int)
    assert back.depth == 16
    assert np.abs(back.pixels - expected).max() <= 1
    assert (back.pixels.min(), back.pixels.max()) == (0, 65535)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_turns_and_mirrors_of_avif_are_done_once(turn: int, mirror: int | None) -> None:
    data = with_property(AVIF, b"irot", bytes([turn])) if turn else AVIF
    data = data if mirror is None else with_property(data, b"imir", bytes([mirror]))
    expected = np.rot90(np.asarray(opened(AVIF).convert("RGB")), turn)
    if mirror is not None:
        expected = expected[::-1] if mirror == 0 else expected[:, ::-1]
    photo = decode(data)
    assert (photo.height, photo.width) == expected.shape[:2]
    assert np.abs(photo.pixels - expected.astype(int)).max() <= 2


def test_hostile_avif_is_refused_on_its_header() -> None:
    at = AVIF.index(b"ispe") + 8
    wider = AVIF[:at] + struct.pack(">II", 65000, 65000) + AVIF[at + 8 :]
    smaller = AVIF[:at] + struct.pack(">II", 8, 8) + AVIF[at + 8 :]
    missing = AVIF.replace(b"ispe", b"free")
    expected = {wider: "over the limit", smaller: "its box says", missing: "how large", AVIF[:-30]: "cut short"}
    for data, words in expected.items():
        with pytest.raises(PhotoError, match=words):
            decode(data)
    frames = [Image.fromarray(noise(32, 32, seed=n)) for n in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "avif", save_all=True, append_images=frames[1:])
    with pytest.raises(PhotoError, match="frames") as caught:
        decode(buffer.getvalue())
    assert caught.value.reason == "animated-image"


def test_limits_hold_for_avif() -> None:
    for limits in (Limits(max_pixels=3071), Limits(max_side=63), Limits(formats=("png",))):
        with pytest.raises(PhotoError):
            decode(AVIF, limits)
    with pytest.raises(PhotoError) as caught:
        check_result_size("avif", 16385, 1)
    assert caught.value.reason == "format-limit"


# HEIC -----------------------------------------------------------------------------------------------------


def test_heic_is_read_with_opacity_gray_and_depth() -> None:
    rgba = np.dstack([smooth(48, 64), smooth(48, 64)[..., 0]])
    photo = decode(heic(rgba))
    assert photo.alpha is not None
    assert np.abs(photo.pixels - rgba[..., :3].astype(int)).max() <= 4
    assert np.abs(photo.alpha - rgba[..., 3].astype(int)).max() <= 2
    gray = decode(heic(smooth(48, 64)[..., :1].copy()))
    assert gray.channels == 1
    deep = smooth(48, 64).astype(np.uint16) * 257
    ten = decode(heic(deep, "RGB;16"))
    assert ten.depth == 16
    assert np.abs(ten.pixels - deep.astype(int)).max() <= 65535 // 100
    white = decode(heic(np.full((32, 32, 3), 65535, np.uint16), "RGB;16"))
    assert white.pixels.min() >= 65535 - 200


def test_heic_is_named_where_it_is_not_read_and_never_written() -> None:
    data = heic(smooth(48, 64), icc_profile=SRGB, exif=b"Exif\0\0" + exif_block())
    assert sniff(data) == "heif"
    photo = decode(data)
    assert photo.icc == SRGB
    assert photo.exif is not None
    with pytest.raises(PhotoError):
        decode(data, Limits(formats=("png", "jpeg")))


def test_hostile_heic_is_refused_on_its_header() -> None:
    data = heic(smooth(48, 64))
    at = data.index(b"ispe") + 8
    smaller = data[:at] + struct.pack(">II", 1, 1) + data[at + 8 :]
    # The stream has whole blocks of 64, which a box of one pixel may be a part of.
    larger = heic(smooth(200, 200))
    at = larger.index(b"ispe") + 8
    for hostile in (smaller, larger[:at] + struct.pack(">II", 8, 8) + larger[at + 8 :]):
        with pytest.raises(PhotoError):
            decode(hostile)


# JPEG XL --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 200), (256, 31), (300, 400)])
def test_jpeg_xl_is_exact_and_its_header_too(channels: int, size: tuple[int, int]) -> None:
    pixels = noise(*size, channels)
    for options in ({"use_container": True}, {"use_container": False}):
        data = jxl(pixels, use_original_profile=True, effort=3, **options)
        header = scan_header(data)
        assert (header.format, header.height, header.width, header.channels) == ("jxl", *size, channels)
        photo = decode(data)
        assert photo.icc is None
        assert np.array_equal(photo.pixels, pixels[..., : photo.channels])
        assert (photo.alpha is None) == (channels in (1, 3))
        if photo.alpha is not None:
            assert np.array_equal(photo.alpha, pixels[..., -1])


def test_jpeg_xl_carries_exif_and_xmp() -> None:
    pytest.importorskip("pillow_jxl")
    photo = Photo(
        smooth(24, 40), exif=exif_block(), xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", density=(300, 300)
    )
    for lossless in (False, True):
        back = decode(encode(photo, "jxl", lossless=lossless))
        assert np.abs(back.pixels - photo.pixels.astype(int)).mean() <= (0 if lossless else 3)
        assert back.exif is not None
        assert b"ACME" in back.exif
        assert (back.xmp, back.density) == (photo.xmp, (300, 300))


def test_limits_and_damage_of_jpeg_xl() -> None:
    data = jxl(noise(40, 60))
    with pytest.raises(PhotoError, match="over the limit"):
        decode(data, Limits(max_pixels=2399))
    for broken in (data[:20], data[: len(data) // 2], b"\xff\x0a", b"\xff\x0a" + b"\xff" * 40):
        with pytest.raises(PhotoError) as caught:
            decode(broken)
        assert "\n" not in str(caught.value)


# All ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avif", "heif", "jxl"])
def test_damage_never_raises_anything_but_photo_error(name: str) -> None:
    whole = {"avif": lambda: AVIF, "heif": lambda: heic(smooth(40, 40)), "jxl": lambda: jxl(smooth(40, 40))}[name]()
    rng = np.random.default_rng(7)
    for round_ in range(150):
        data = bytearray(whole)
        span = len(data) if round_ % 2 else min(400, len(data))
        for at in rng.integers(12, span, 1 + round_ % 4):
            data[at] = rng.integers(256)
        cut = int(rng.integers(1, len(data))) if round_ % 7 == 0 else len(data)
        try:
            outcome = str(decode(bytes(data[:cut]), Limits(max_pixels=1 << 20)).pixels.size <= 3 << 20)
        except PhotoError as error:
            outcome = str(error)
        assert outcome.isprintable()
        assert outcome != "False"


def test_formats_of_the_extra_name_it_where_it_is_missing() -> None:
    """In a process of its own, whose imports of the libraries fail."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(['pillow_heif', 'pillow_jxl']))"
    work = "from ray_sr.images import encode, Photo, PhotoError; import numpy as np"
    tried = "\ntry: encode(Photo(np.zeros((4, 4, 3), np.uint8)), 'jxl')\nexcept PhotoError as error: print(error)"
    found = subprocess.run(
        [sys.executable, "-c", f"{hidden}; {work}{tried}"], capture_output=True, text=True, check=True
    )
    assert "ray-sr[formats]" in found.stdout
