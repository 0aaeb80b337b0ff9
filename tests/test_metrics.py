"""Metrics against scikit-image, closed forms, and the published figures of bicubic upscaling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ray_sr.errors import InputError
from ray_sr.images.resample import downscale_array, mod_crop, upscale_array
from ray_sr.metrics import Protocol, luma, mean_metrics, measure, psnr, sharpness, ssim
from tests.shared_data import shared_folder

# PSNR in dB and SSIM on Y of MATLAB bicubic, as in the tables of EDSR (Lim et al. 2017) and others.
PUBLISHED_BICUBIC = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.24, 0.8688),
    ("Set14", 3): (27.55, 0.7742),
    ("Set14", 4): (26.00, 0.7027),
}


def photo_pair(height: int = 48, width: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth made-up photo and a noisy copy, uint8 H×W×3."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + channel)) * np.cos(y / (5 - channel)) for channel in range(3)]
    hr = 127 + 90 * np.stack(waves, axis=-1)
    sr = hr + rng.normal(0, 9, hr.shape)
    return sr.clip(0, 255).astype(np.uint8), hr.astype(np.uint8)


def skimage_ssim(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2 if a.ndim == 3 else None,
    )


def test_luma_is_studio_range_bt601() -> None:
    """Corners of the RGB cube, from the definition of the matrix in ITU-R BT.601 for 8 bits."""
    colours = {(0, 0, 0): 16.0, (255, 255, 255): 235.0, (255, 0, 0): 81.481, (0, 0, 255): 40.966}
    for colour, expected in colours.items():
        assert luma(np.array([[colour]], np.uint8))[0, 0] == pytest.approx(expected, abs=1e-9)
    assert luma(np.array([[[127.5, 127.5, 127.5]]]))[0, 0] == pytest.approx(125.5)


def test_psnr_closed_forms() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a - np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr(a, a + np.uint8(1)) == psnr(a + np.uint8(1), a)
    assert psnr(a / 255, (a + 51) / 255, peak=1.0) == pytest.approx(20 * math.log10(5))


def test_psnr_equals_skimage() -> None:
    sr, hr = photo_pair()
    assert psnr(sr, hr) == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-9)


@pytest.mark.parametrize("sides", [(48, 64), (11, 11), (12, 40)])
def test_ssim_equals_skimage(sides: tuple[int, int]) -> None:
    sr, hr = photo_pair(*sides)
    assert ssim(sr, hr) == pytest.approx(skimage_ssim(sr, hr), abs=1e-9)
    assert ssim(luma(sr), luma(hr)) == pytest.approx(skimage_ssim(luma(sr), luma(hr)), abs=1e-9)


def test_ssim_of_equal_flat_and_inverted_images() -> None:
    _, hr = photo_pair()
    assert ssim(hr, hr) == pytest.approx(1, abs=1e-12)
    assert ssim(hr, 254 - hr) < 0
    black, white = np.zeros((20, 20)), np.full((20, 20), 255.0)
    c1 = 0.01**2
    assert ssim(black, white) == pytest.approx(c1 / (1 + c1))


@pytest.mark.parametrize("border", [0, 4])
def test_measure_equals_skimage_inside_the_border(border: int) -> None:
    sr, hr = photo_pair()
    result = measure(sr, hr, border=border)
    a, b = (image[border : 48 - border, border : 64 - border] for image in (sr, hr))
    assert result == pytest.approx(
        {
            "psnr_y": peak_signal_noise_ratio(luma(b), luma(a), data_range=255),
            "ssim_y": skimage_ssim(luma(a), luma(b)),
            "psnr_rgb": peak_signal_noise_ratio(b, a, data_range=255),
            "ssim_rgb": skimage_ssim(a, b),
        },
        abs=1e-9,
    )


def test_measure_ignores_the_border() -> None:
    _, hr = photo_pair()
    sr = hr.copy()
    sr[:4], sr[-4:], sr[:, :4], sr[:, -4:] = 0, 0, 255, 255
    perfect = {"psnr_y": math.inf, "ssim_y": 1.0, "psnr_rgb": math.inf, "ssim_rgb": 1.0}
    assert measure(sr, hr, border=4) == pytest.approx(perfect)
    assert measure(sr, hr, border=3)["psnr_y"] < 40


def test_gray_photos_are_compared_as_they_are() -> None:
    sr, hr = (image[..., 0] for image in photo_pair())
    result = measure(sr, hr, border=2)
    assert result["psnr_y"] == result["psnr_rgb"] == psnr(sr[2:-2, 2:-2], hr[2:-2, 2:-2])
    assert result["ssim_y"] == result["ssim_rgb"] == ssim(sr[2:-2, 2:-2], hr[2:-2, 2:-2])
    as_rgb = measure(np.dstack([sr] * 3), np.dstack([hr] * 3), border=2)
    assert as_rgb["psnr_y"] - result["psnr_y"] == pytest.approx(20 * math.log10(255 / 219), abs=1e-6)


def test_measure_refuses_what_it_cannot_compare() -> None:
    sr, hr = photo_pair()
    with pytest.raises(InputError, match="cannot compare shapes"):
        measure(sr[:-1], hr, border=4)
    with pytest.raises(InputError, match="cannot compare shapes"):
        measure(sr[..., 0], hr, border=4)
    with pytest.raises(InputError, match="uint8"):
        measure(sr.astype(np.float32), hr, border=4)
    with pytest.raises(InputError, match="convert it to RGB"):
        measure(np.dstack([sr, sr]), np.dstack([hr, hr]), border=4)
    with pytest.raises(InputError, match="11×11 pixels must remain"):
        measure(sr[:18], hr[:18], border=4)
    with pytest.raises(InputError, match="border of -1"):
        measure(sr, hr, border=-1)
    assert math.isfinite(measure(sr[:19], hr[:19], border=4)["ssim_y"])


def test_psnr_and_ssim_refuse_shapes_that_would_broadcast() -> None:
    a = np.zeros((16, 16, 3))
    for metric in (psnr, ssim):
        with pytest.raises(InputError, match="cannot compare"):
            metric(a, a[:1])
    with pytest.raises(InputError, match="at least 11×11"):
        ssim(a[:10], a[:10])


def test_mean_metrics() -> None:
    mean = mean_metrics([{"psnr_y": 30.0, "ssim_y": 0.5}, {"psnr_y": 32.0, "ssim_y": 0.75}])
    assert mean == {"psnr_y": 31.0, "ssim_y": 0.625}
    assert mean_metrics([{"psnr_y": math.inf}, {"psnr_y": 30.0}])["psnr_y"] == math.inf
    with pytest.raises(ValueError, match="no metrics"):
        mean_metrics([])
    with pytest.raises(ValueError, match="psnr_y"):
        mean_metrics([{"psnr_y": 30.0}, {"ssim_y": 0.5}])


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    sr, _ = photo_pair(9, 12)
    gray = np.rint(0.299 * sr[..., 0] + 0.587 * sr[..., 1] + 0.114 * sr[..., 2])
    p = np.pad(gray, 1, mode="reflect")
    expected = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * gray
    assert sharpness(sr) == pytest.approx(expected.var())
    assert sharpness(gray.astype(np.uint8)) == pytest.approx(expected.var())


def test_sharpness_falls_when_detail_is_lost() -> None:
    sr, _ = photo_pair()
    blurred = upscale_array(downscale_array(sr, 4), 4)
    assert sharpness(blurred) < 0.2 * sharpness(sr)
    assert sharpness(np.full((8, 8, 3), 90, np.uint8)) == 0


def test_protocol_states_border_and_colour() -> None:
    text = Protocol(border=4).describe()
    assert "border 4 px" in text
    assert "BT.601 studio range" in text
    assert "\n" not in text


@pytest.mark.parametrize(("name", "scale"), PUBLISHED_BICUBIC)
def test_published_bicubic_figures(name: str, scale: int) -> None:
    files = sorted((shared_folder("data/benchmarks") / name / "HR").glob("*.png"))
    assert len(files) == {"Set5": 5, "Set14": 14}[name]
    results = []
    for file in files:
        hr = mod_crop(np.asarray(Image.open(file)), scale)
        sr = upscale_array(downscale_array(hr, scale), scale)
        results.append(measure(sr, hr, border=scale))
    mean = mean_metrics(results)
    psnr_y, ssim_y = PUBLISHED_BICUBIC[name, scale]
    assert mean["psnr_y"] == pytest.approx(psnr_y, abs=0.02)
    assert mean["ssim_y"] == pytest.approx(ssim_y, abs=0.001)
