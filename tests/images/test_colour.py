"""How containers say their colours: each way, in each format of the result, is what another reader shows."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from ray_sr.images import PhotoError, decode, encode, left_out
from ray_sr.images.colour import CURVES, PRIMARIES, Colours, colours_of_codes, profile_of
from ray_sr.images.icc import icc_fits, icc_is_linear
from tests.image_files import SRGB, chunk, ihdr, nclx_avif, opened, patches, saved
from tests.serving.page_browser import chromium, find_chromium

ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290)
P3 = colours_of_codes(12, 13) or Colours()
P3_PROFILE = profile_of(P3, 3) or b""
GAMMA_22, GAMMA_18, LINEAR = (chunk(b"gAMA", struct.pack(">I", value)) for value in (45455, 55556, 100000))
CICP_P3 = chunk(b"cICP", b"\x0c\x0d\0\1")


def chromaticities(points: tuple[float, ...]) -> bytes:
    values = (*points[6:], *points[:6])
    return chunk(b"cHRM", struct.pack(">8I", *(round(100000 * value) for value in values)))


def png(*extra: bytes, gray: bool = False) -> bytes:
    pixels = patches()[..., :1] if gray else patches()
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = ihdr(pixels.shape[1], pixels.shape[0], 8, 0 if gray else 2)
    return head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def adobe_exif() -> bytes:
    """EXIF whose ColorSpace is uncalibrated and whose interoperability index is that of Adobe RGB (DCF 2.0)."""
    first = struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
    exif = struct.pack("<HHHIHHHHIII", 2, 0xA001, 3, 1, 0xFFFF, 0, 0xA005, 4, 1, 56, 0)
    return b"II*\0\x08\0\0\0" + first + exif + struct.pack("<HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)


SOURCES = {
    "png without a word": ("png", png()),
    "png sRGB": ("png", png(chunk(b"sRGB", b"\0"))),
    "png iCCP": ("png", png(iccp(P3_PROFILE))),
    "png cICP": ("png", png(CICP_P3)),
    "png cICP of a camera": ("png", png(chunk(b"cICP", b"\x09\x0e\0\1"))),
    "png cICP before iCCP": ("png", png(CICP_P3, iccp(SRGB))),
    "png gray cICP": ("png", png(chunk(b"cICP", b"\1\4\0\1"), gray=True)),
    "png gAMA": ("png", png(GAMMA_18)),
    "png gAMA linear": ("png", png(LINEAR)),
    "png gray gAMA": ("png", png(GAMMA_18, gray=True)),
    "png gAMA of sRGB": ("png", png(GAMMA_22)),
    "png gAMA cHRM": ("png", png(GAMMA_22, chromaticities(ADOBE))),
    "png gAMA cHRM of sRGB": ("png", png(GAMMA_22, chromaticities(PRIMARIES[1]))),
    "png cHRM": ("png", png(chromaticities(ADOBE))),
    "jpeg ICC": ("jpeg", saved(patches(), "jpeg", quality=100, subsampling=0, icc_profile=P3_PROFILE)),
    "jpeg EXIF": ("jpeg", saved(patches(), "jpeg", quality=100, subsampling=0, exif=adobe_exif())),
    "webp ICC": ("webp", saved(patches(), "webp", lossless=True, icc_profile=P3_PROFILE)),
    "avif nclx": ("avif", nclx_avif(patches(), 12, 13)),
    "avif nclx of a camera": ("avif", nclx_avif(patches(), 1, 1)),
    "avif nclx linear": ("avif", nclx_avif(patches(), 1, 8)),
    "avif ICC": ("avif", saved(patches(), "avif", quality=100, subsampling="4:4:4", icc_profile=P3_PROFILE)),
}
SHOWN_BY_BROWSERS = ("png", "jpeg", "webp", "avif")
_SHOW = """async ([type, data]) => {
  const image = new Image();
  image.src = `data:image/${type};base64,${data}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const drawing = canvas.getContext("2d");
  drawing.drawImage(image, 0, 0);
  return [canvas.height, canvas.width, ...drawing.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@pytest.fixture(scope="module")
def tab() -> Any:
    with chromium(find_chromium()) as browser:
        yield browser.new_page()


def shown(tab: Any, format: str, data: bytes) -> np.ndarray:
    """The sRGB values of the middle of each patch, as Chromium paints them."""
    height, width, *values = tab.evaluate(_SHOW, [format, base64.b64encode(data).decode()])
    return np.array(values, int).reshape(height, width, 4)[4, 4::8, :3]


@pytest.mark.browser
@pytest.mark.parametrize("name", SOURCES)
def test_a_browser_shows_the_result_as_it_shows_the_original(tab: Any, name: str) -> None:
    format, data = SOURCES[name]
    photo = decode(data)
    original = shown(tab, format, data)
    for result in SHOWN_BY_BROWSERS:
        there = shown(tab, result, encode(photo, result, quality=100, lossless=True))
        assert np.abs(there - original).max() <= (2 if "jpeg" in (format, result) else 1), result


@pytest.mark.browser
@pytest.mark.parametrize("name", SOURCES)
def test_a_browser_shows_what_tiff_and_jpeg_xl_hold_as_it_shows_the_original(tab: Any, name: str) -> None:
    """Browsers open neither: Pillow's pixels and profile of them go into a PNG."""
    pytest.importorskip("pillow_jxl")
    format, data = SOURCES[name]
    photo = decode(data)
    original = shown(tab, format, data)
    for result in ("tiff", "jxl"):
        image = opened(encode(photo, result, lossless=True))
        buffer = io.BytesIO()
        image.save(buffer, "png", icc_profile=image.info.get("icc_profile"))
        there = shown(tab, "png", buffer.getvalue())
        assert np.abs(there - original).max() <= (2 if format == "jpeg" or result == "jxl" else 1), result


def by_littlecms(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """The pixels in sRGB by their profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = "L" if pixels.shape[2] == 1 else "RGB"
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return np.asarray(converted).astype(int)


def by_formulas(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """The same by the definitions: light by the curve, XYZ by the primaries, sRGB by IEC 61966-2-1."""

    def matrix(points: tuple[float, ...]) -> np.ndarray:
        pairs = np.array(points).reshape(4, 2)
        xyz = np.column_stack([pairs[:, 0] / pairs[:, 1], np.ones(4), (1 - pairs.sum(1)) / pairs[:, 1]]).T
        return np.asarray(xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3]))

    value = pixels / 255
    if len(colours.curve) == 1:
        light = value ** colours.curve[0]
    else:
        g, a, b, c, d = colours.curve
        light = np.where(value >= d, (a * value + b) ** g, c * value)
    linear = light @ (np.linalg.inv(matrix(PRIMARIES[1])) @ matrix(colours.primaries)).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded).astype(int))


@pytest.mark.parametrize("primaries", [1, 5, 6, 9, 12, 22])
@pytest.mark.parametrize("transfer", [1, 4, 8, 13])
def test_profiles_say_what_the_codes_say(primaries: int, transfer: int) -> None:
    colours = colours_of_codes(primaries, transfer)
    assert colours is not None
    profile = profile_of(colours, 3)
    assert profile is not None
    assert icc_fits(profile, 3)
    assert icc_is_linear(profile) == (transfer == 8)
    assert np.abs(by_littlecms(patches(), profile) - by_formulas(patches(), colours)).max() <= 2


def test_every_code_gives_a_profile_that_littlecms_opens() -> None:
    for primaries in PRIMARIES:
        for transfer in CURVES:
            for channels in (1, 3):
                colours = colours_of_codes(primaries, transfer)
                assert colours is not None
                profile = profile_of(colours, channels)
                assert profile is not None
                assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    assert colours_of_codes(10, 13) is None
    assert colours_of_codes(1, 3) is None


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("jpeg EXIF", "png cHRM")])
def test_tiff_and_jpeg_xl_show_the_same_by_their_profiles(name: str) -> None:
    pytest.importorskip("pillow_jxl")
    photo = decode(SOURCES[name][1])
    expected = photo.pixels.astype(int)
    if photo.icc is not None:
        expected = by_littlecms(photo.pixels, photo.icc)
    tiff = opened(encode(photo, "tiff"))
    pixels = np.asarray(tiff).reshape(*photo.pixels.shape)
    in_tiff = by_littlecms(pixels, tiff.info["icc_profile"]) if photo.icc else pixels.astype(int)
    assert np.abs(in_tiff - expected).max() <= 1
    assert np.abs(decode(encode(photo, "jxl", lossless=True)).pixels.astype(int) - expected).max() <= 2
    assert left_out(photo, "jxl") == (("converted-to-srgb",) if photo.icc else ())


def test_png_keeps_its_own_words_byte_for_byte() -> None:
    srgb = chunk(b"sRGB", b"\1")
    for chunks in ((CICP_P3,), (srgb, GAMMA_22), (GAMMA_22, chromaticities(ADOBE)), (chromaticities(ADOBE),)):
        result = encode(decode(png(*chunks)))
        assert all(one in result for one in chunks)
        assert b"iCCP" not in result
        assert left_out(decode(png(*chunks)), "png") == ()


def test_what_cannot_be_said_elsewhere_is_told() -> None:
    assert left_out(decode(png(chromaticities(ADOBE))), "jpeg") == ("chromaticities-dropped",)
    by_exif = decode(SOURCES["jpeg EXIF"][1])
    assert left_out(by_exif, "png") == ()
    assert "colour-space-dropped" in left_out(by_exif, "tiff")
    assert left_out(by_exif, "webp", "none") == ("colour-space-dropped",)


def test_words_without_a_meaning_are_dropped_with_a_warning() -> None:
    for codes in (b"\x0a\x0d\0\1", b"\x0c\x03\0\1", b"\x0c\x0d\1\1", b"\x0c"):
        photo = decode(png(chunk(b"cICP", codes)))
        assert (photo.icc, photo.png_colour, photo.warnings) == (None, None, ("cicp-dropped",))
    assert decode(png(chunk(b"cICP", b"\x0c\x0d\0\0"))).warnings == ("narrow-range-ignored",)
    flat = chromaticities((0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3127, 0.3290))
    for chunks in ((chunk(b"gAMA", bytes(4)),), (GAMMA_22, flat), (GAMMA_22, chunk(b"cHRM", bytes(32)))):
        assert decode(png(*chunks)).warnings == ("gamma-dropped",)
    assert decode(nclx_avif(patches(), 10, 13)).warnings == ("nclx-dropped",)
    for data in (png(chunk(b"cICP", b"\x09\x10\0\1")), nclx_avif(patches(), 9, 18)):
        with pytest.raises(PhotoError, match="HDR"):
            decode(data)


def tiff_of(tags: dict[int, tuple[int, Any]], **options: Any) -> bytes:
    """A TIFF by Pillow with these tags: type and value."""
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        ifd.tagtype[tag] = kind
        ifd[tag] = value
    return saved(patches(), "tiff", tiffinfo=ifd, **options)


def test_colours_in_tags_of_tiff_are_told_of_unless_a_profile_or_srgb_says_them() -> None:
    def points(values: tuple[float, ...]) -> tuple[int, Any]:
        return 5, tuple(TiffImagePlugin.IFDRational(round(10000 * value), 10000) for value in values)

    adobe = {318: points(ADOBE[6:]), 319: points(ADOBE[:6])}
    srgb = {318: points(PRIMARIES[1][6:]), 319: points(PRIMARIES[1][:6])}
    table = {301: (3, tuple(range(0, 65536, 256)))}
    assert decode(tiff_of(adobe)).warnings == ("chromaticities-dropped",)
    assert decode(tiff_of(srgb)).warnings == ()
    assert decode(tiff_of({**srgb, **table})).warnings == ("transfer-function-dropped",)
    by_profile = decode(tiff_of({**adobe, **table}, icc_profile=P3_PROFILE))
    assert (by_profile.warnings, by_profile.icc) == ((), P3_PROFILE)
