"""The rules of fidelity, each from a real file of that kind to the file that `upscale_files` makes of it.

Files are made by Pillow or libvips and read back by them.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from ray_sr.images import PhotoError, read_photo
from ray_sr.images.icc import icc_is_linear
from ray_sr.images.resample import downscale_array, upscale_array
from ray_sr.models import Bicubic, build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions, upscale_files
from ray_sr.upscaling.results import FileResult
from tests.image_files import chunk, exif_block
from tests.photos import real_photos

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = Bicubic(2)
    return Engine(model, model.capability)


def _coffee(side: int = 48) -> np.ndarray:
    return real_photos()["coffee"][:side, : side + 8].copy()


def _upscale(engine: Engine, source: Path, format: str = "png", **options: object) -> tuple[Path, FileResult]:
    target = source.parent / f"result.{ENDINGS[format]}"
    chosen = FileOptions(existing="overwrite", **options)  # type: ignore[arg-type]
    summary = upscale_files([source], target, engine, options=chosen, quiet=True)
    assert summary.exit_code == 0, summary.files[0].reason
    return target, summary.files[0]


def _profile(gamma: float) -> bytes:
    """The sRGB profile with its tone curves replaced by a power, as editors for HDR and 3D write."""
    profile = bytearray(SRGB)
    for tag in range(struct.unpack_from(">I", profile, 128)[0]):
        name, start, _ = struct.unpack_from(">4sII", profile, 132 + 12 * tag)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[start : start + 16] = b"para" + bytes(8) + struct.pack(">I", round(gamma * 65536))
    return bytes(profile)


# a ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ENDINGS)
@pytest.mark.parametrize("result", ENDINGS)
def test_a_profiles_pass_byte_for_byte_and_convert_nothing(
    engine: Engine, source: str, result: str, tmp_path: Path
) -> None:
    profile = _profile(1.8)
    options = {"lossless": True} if source == "webp" else {}
    Image.fromarray(_coffee()).save(tmp_path / f"a.{ENDINGS[source]}", source, icc_profile=profile, **options)
    target, _ = _upscale(engine, tmp_path / f"a.{ENDINGS[source]}", result, lossless=True)
    with Image.open(target) as image:
        assert image.info["icc_profile"] == profile
    if result != "jpeg":
        expected = upscale_array(read_photo(tmp_path / f"a.{ENDINGS[source]}").pixels, 2)
        assert np.abs(read_photo(target).pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_linear_profiles_are_upscaled_on_a_display_curve(dtype: type, in_memory: int, tmp_path: Path) -> None:
    """The network sees what it was trained on; the values that come back are linear again, with the profile."""
    seen = []

    class Watched(Bicubic):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            seen.append(float(batch.mean()))
            return super().forward(batch)

    model = Watched(2)
    engine = Engine(model, model.capability)
    seen.clear()
    top = np.iinfo(dtype).max
    level = round(0.2140 * top)  # of light: half of the way to white on a display
    image = pyvips.Image.new_from_array(np.full((20, 24, 3), level, dtype))
    image = image.copy(interpretation="srgb" if top == 255 else "rgb16")
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", _profile(1.0))
    image.tiffsave(str(tmp_path / "a.tif"))
    target, _ = _upscale(engine, tmp_path / "a.tif", "tiff", in_memory=in_memory)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.01)
    result = read_photo(target)
    assert result.icc == _profile(1.0)
    assert np.abs(result.pixels.astype(int) - level).max() <= top // 1000 + 1


def test_a_ordinary_profiles_are_not_taken_for_linear() -> None:
    assert not icc_is_linear(SRGB)
    assert not icc_is_linear(_profile(1.8))
    assert icc_is_linear(_profile(1.0))
    for length in range(0, len(SRGB), 7):
        icc_is_linear(SRGB[:length])


# b ----------------------------------------------------------------------------------------------------------


def test_b_cmyk_becomes_rgb_and_gray_stays_gray(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(_coffee()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    target, told = _upscale(engine, tmp_path / "cmyk.jpg")
    assert "cmyk-converted" in told.warnings
    with Image.open(target) as image:
        assert (image.mode, image.size) == ("RGB", (112, 96))
        back = downscale_array(np.asarray(image), 2)
    assert np.corrcoef(back.mean(2).ravel(), _coffee().mean(2).ravel())[0, 1] > 0.95
    Image.fromarray(_coffee()).convert("L").save(tmp_path / "gray.png")
    for format in ("png", "jpeg", "tiff"):
        target, _ = _upscale(engine, tmp_path / "gray.png", format)
        with Image.open(target) as image:
            assert image.mode == "L"


def test_b_lab_is_refused_and_not_shown_in_wrong_colours(engine: Engine, tmp_path: Path) -> None:
    """libvips 8.18 writes 8-bit L*a*b* TIFFs and cannot read them, not even its own."""
    image = pyvips.Image.new_from_array(_coffee()).copy(interpretation="srgb")
    image.colourspace("labq").tiffsave(str(tmp_path / "lab.tif"))
    summary = upscale_files([tmp_path / "lab.tif"], tmp_path / "result.png", engine, quiet=True)
    if summary.files[0].status == "done":
        assert "lab-converted" in summary.files[0].warnings
        assert (
            np.abs(downscale_array(read_photo(tmp_path / "result.png").pixels, 2).astype(int) - _coffee()).mean()
            < 6
        )
    else:
        assert "cannot be decoded" in summary.files[0].reason


def test_b_palettes_become_their_colours(engine: Engine, tmp_path: Path) -> None:
    palette = Image.fromarray(_coffee()).quantize(16)
    palette.save(tmp_path / "palette.png")
    target, _ = _upscale(engine, tmp_path / "palette.png")
    expected = upscale_array(np.asarray(palette.convert("RGB")), 2)
    assert np.abs(read_photo(target).pixels.astype(int) - expected).max() <= 1


# c ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["png", "jpeg", "webp"])
def test_c_photos_are_turned_once_and_keep_what_was_written_about_them(
    engine: Engine, result: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Maker", "Someone"
    exif.get_ifd(0x8769).update({0xA002: 56, 0xA003: 48})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 0.0)})
    Image.fromarray(_coffee()).save(tmp_path / "a.jpg", quality=95, exif=exif, dpi=(300, 300))
    target, _ = _upscale(engine, tmp_path / "a.jpg", result)
    with Image.open(target) as image:
        got = image.getexif()
        assert image.size == (96, 112)
        assert (got.get(0x0112, 1), got[0x010F], got[0x8298]) == (1, "Maker", "Someone")
        assert (got.get_ifd(0x8769)[0xA002], got.get_ifd(0x8769)[0xA003]) == (96, 112)
        assert got.get_ifd(0x8825)[1] == "N"
        if result != "webp":
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    upright = np.rot90(_coffee(), -1)
    assert np.abs(downscale_array(read_photo(target).pixels, 2).astype(int) - upright).mean() < 8
    again, _ = _upscale(engine, target.rename(tmp_path / f"again{target.suffix}"), result)
    assert read_photo(again).pixels.shape[:2] == (224, 192), "not turned a second time"


def test_c_metadata_is_left_out_on_wish(engine: Engine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = "Maker", "Someone"
    exif.get_ifd(0x8825).update({1: "N"})
    Image.fromarray(_coffee()).save(tmp_path / "a.jpg", exif=exif)
    found = {}
    for metadata in ("copyright", "none"):
        target, _ = _upscale(engine, tmp_path / "a.jpg", metadata=metadata)
        with Image.open(target) as image:
            found[metadata] = image.getexif()
    assert found["copyright"][0x8298] == "Someone"
    assert 0x010F not in found["copyright"]
    assert not found["copyright"].get_ifd(0x8825)
    assert not found["none"]


def test_c_no_thumbnail_of_the_small_photo_is_left(engine: Engine, tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(_coffee()[:8, :8]).save(thumbnail, "jpeg")
    data = io.BytesIO()
    exif = b"Exif\0\0" + exif_block(1, thumbnail=thumbnail.getvalue())
    Image.fromarray(_coffee()).save(data, "jpeg", exif=exif)
    assert thumbnail.getvalue() in data.getvalue()
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    target, _ = _upscale(engine, tmp_path / "a.jpg", "jpeg")
    assert thumbnail.getvalue() not in target.read_bytes()


# d ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_d_no_dark_fringe_around_what_is_transparent(engine: Engine, format: str, tmp_path: Path) -> None:
    """An orange disc with black hidden behind it, as most editors save it, over white and over orange."""
    rows, columns = np.mgrid[:40, :40] - 19.5
    opacity = np.rint(((14 - np.hypot(rows, columns)) / 3).clip(0, 1) * 255).astype(np.uint8)
    orange = np.array([250, 140, 10])
    colour = np.where(opacity[..., None] > 0, orange, 0).astype(np.uint8)
    Image.fromarray(np.dstack([colour, opacity])).save(tmp_path / "a.png")
    target, _ = _upscale(engine, tmp_path / "a.png", format, lossless=True)
    with Image.open(target) as image:
        assert image.mode == "RGBA"
        for background in ((250, 140, 10), (255, 255, 255), (0, 0, 0)):
            over = Image.new("RGBA", image.size, (*background, 255))
            shown = np.asarray(Image.alpha_composite(over, image))[..., :3].astype(int)
            low, high = np.minimum(orange, background), np.maximum(orange, background)
            # Premultiplied bicubic, which results are held to, overshoots this edge by 5 levels itself.
            assert (shown >= low - 5).all()
            assert (shown <= high + 5).all()
        clear = np.asarray(image)[..., 3]
        assert clear[0, 0] == 0
        assert clear[40, 40] == 255


def test_d_masks_and_transparent_palette_entries_stay_two_valued(engine: Engine, tmp_path: Path) -> None:
    palette = Image.fromarray(_coffee()).quantize(8)
    palette.save(tmp_path / "a.png", transparency=3)
    with Image.open(tmp_path / "a.png") as image:
        share = (np.asarray(image.convert("RGBA"))[..., 3] == 0).mean()
    target, _ = _upscale(engine, tmp_path / "a.png")
    with Image.open(target) as image:
        alpha = np.asarray(image)[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert (alpha == 0).mean() == pytest.approx(share, abs=0.05)


# e ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_e_sixteen_bits_stay_sixteen_even_where_all_values_are_small(
    engine: Engine, format: str, channels: int, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).integers(60, 200, (30, 34, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535  # colours count by their opacity: opaque, all count alike
    kind = "grey16" if channels < 3 else "rgb16"
    image = pyvips.Image.new_from_array(values).copy(interpretation=kind)
    getattr(image, f"{format}save")(str(tmp_path / f"a.{ENDINGS[format]}"))
    target, _ = _upscale(engine, tmp_path / f"a.{ENDINGS[format]}", format)
    result = pyvips.Image.new_from_file(str(target))
    assert (result.format, result.bands) == ("ushort", channels)
    colours = channels - 1 if channels in (2, 4) else channels
    expected = upscale_array(values[..., :colours], 2)
    assert np.abs(result.numpy().reshape(60, 68, channels)[..., :colours].astype(int) - expected).max() <= 1


def test_e_sixteen_bit_results_are_those_of_float32(tmp_path: Path) -> None:
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8))).eval()
    values = np.random.default_rng(1).integers(0, 65536, (30, 34, 3), dtype=np.uint16)
    pyvips.Image.new_from_array(values).copy(interpretation="rgb16").pngsave(str(tmp_path / "a.png"))
    target, _ = _upscale(Engine(network, network.capability, precision="bf16"), tmp_path / "a.png")
    exact = Engine(network, network.capability, precision="float32").run(values)
    assert np.abs(read_photo(target).pixels / 65535 - exact.clip(0, 1)).max() < 1 / 65535


# f ----------------------------------------------------------------------------------------------------------


def test_f_png_unasked_jpeg_without_lost_colour(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(_coffee()).save(tmp_path / "a.jpg", quality=90)
    summary = upscale_files([tmp_path / "a.jpg"], None, engine, quiet=True)
    assert summary.files[0].target == str(tmp_path / "a_x2.png")
    assert np.array_equal(
        read_photo(tmp_path / "a_x2.png").pixels, engine.run(read_photo(tmp_path / "a.jpg").pixels, np.uint8)
    )
    target, _ = _upscale(engine, tmp_path / "a.jpg", "jpeg")
    reference = io.BytesIO()
    with Image.open(target) as image:
        assert [(across, down) for _, across, down, _ in image.layer] == [(1, 1)] * 3
        image.copy().save(reference, "jpeg", quality=95)
        with Image.open(reference) as plain:
            assert image.quantization == plain.quantization


def test_f_hdr_is_refused_and_not_made_dull(engine: Engine, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(_coffee()).save(data, "png")
    whole = data.getvalue()
    (tmp_path / "pq.png").write_bytes(whole[:33] + chunk(b"cICP", bytes([9, 16, 0, 1])) + whole[33:])
    with pytest.raises(PhotoError):
        read_photo(tmp_path / "pq.png")
    summary = upscale_files([tmp_path / "pq.png"], tmp_path / "out", engine, quiet=True)
    assert summary.files[0].status == "failed"
    assert not (tmp_path / "out").exists()


# g and h ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ENDINGS)
def test_g_the_same_file_gives_the_same_bytes(engine: Engine, format: str, tmp_path: Path) -> None:
    Image.fromarray(_coffee()).save(tmp_path / "a.png", icc_profile=SRGB, dpi=(72, 72))
    first = _upscale(engine, tmp_path / "a.png", format)[0].read_bytes()
    assert _upscale(engine, tmp_path / "a.png", format)[0].read_bytes() == first


def test_g_tiles_leave_no_seam(tmp_path: Path) -> None:
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=3, channels=8))).eval()
    Image.fromarray(_coffee(120)).save(tmp_path / "a.png")
    results = []
    for tile in (None, 40, 64):
        target, _ = _upscale(Engine(network, network.capability, tile=tile), tmp_path / "a.png")
        results.append(read_photo(target).pixels.astype(int))
    assert all(np.abs(result - results[0]).max() <= 1 for result in results)


def test_h_the_shrunk_result_is_the_photo_and_its_distance_is_told(tmp_path: Path) -> None:
    network = build_generator(NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8))).eval()
    Image.fromarray(_coffee()).save(tmp_path / "a.png")
    target, told = _upscale(Engine(network, network.capability), tmp_path / "a.png", consistency=True)
    assert np.abs(downscale_array(read_photo(target).pixels, 2).astype(int) - _coffee()).max() <= 1
    assert (told.consistency_db or 0) > 50
