"""Full-reference quality (PSNR, SSIM) and sharpness of 8-bit photos, under the protocol of published tables.

Photos are H×W×3, red first, or gray H×W, 0..255. `Protocol` says in words how figures were taken: print it
beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d, laplace

from ray_sr.errors import InputError

_LUMA_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255  # BT.601, studio range 16..235
_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601, full range

_WINDOW_RADIUS = 5
_WINDOW_SIDE = 2 * _WINDOW_RADIUS + 1
_WINDOW_SIGMA = 1.5
MOST_DECIBELS = 100.0  # what an exact result counts as in means that trials and steps are compared by


@dataclass(frozen=True)
class Protocol:
    """How `measure` compares: `border` pixels are cut from each side, usually as many as the scale."""

    border: int

    def describe(self) -> str:
        """One line for tables and reports."""
        return (
            f"8-bit output; border {self.border} px cropped; Y = BT.601 studio range (MATLAB rgb2ycbcr), "
            f"not rounded; SSIM gaussian {_WINDOW_SIDE}x{_WINDOW_SIDE} sigma {_WINDOW_SIGMA}, valid region, "
            "L=255; RGB: PSNR over all channels, SSIM mean of the channels; gray photos compared as they are"
        )


def measure(sr: np.ndarray, hr: np.ndarray, *, border: int) -> dict[str, float]:
    """PSNR in dB and SSIM of `sr` against `hr`, both uint8 H×W×3, as psnr_y, ssim_y, psnr_rgb, ssim_rgb.

    Two gray photos H×W are compared as they are, Y and RGB figures alike; the MATLAB tables count `bridge` of
    Set14 so. As three equal channels its Y would span 219 levels, not 255, and score 1.3 dB more.
    Raises InputError for other dtypes or shapes, for two shapes, and when cutting `border` leaves less than
    11×11 pixels.
    """
    _check_same_shape(sr, hr)
    for name, image in (("SR", sr), ("HR", hr)):
        if image.dtype != np.uint8:
            raise InputError(f"{name} is {image.dtype}, but figures are taken on uint8: convert it first")
    sr, hr = _crop(sr, border), _crop(hr, border)
    sr_y, hr_y = luma(sr), luma(hr)
    return {
        "psnr_y": psnr(sr_y, hr_y),
        "ssim_y": ssim(sr_y, hr_y),
        "psnr_rgb": psnr(sr, hr),
        "ssim_rgb": ssim(sr, hr),
    }


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over images; infinite where one image is equal to its reference.

    Raises ValueError for an empty sequence, or when the images do not share the same figures.
    """
    if not metrics:
        raise ValueError("no metrics to average")
    names = list(metrics[0])
    if any(set(entry) != set(names) for entry in metrics):
        raise ValueError("the images do not share the same metrics: each needs " + ", ".join(names))
    return {name: math.fsum(entry[name] for entry in metrics) / len(metrics) for name in names}


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of H×W×3 values 0..255 as float64 16..235: ITU-R BT.601 as MATLAB's rgb2ycbcr, not rounded.

    A gray H×W photo is its own Y, 0..255.
    """
    return _gray(rgb, _LUMA_WEIGHTS, offset=16)


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB over all values of two equal shapes; inf when they are equal."""
    _check_same_shape(a, b)
    error = float(np.mean(np.square(np.subtract(a, b, dtype=np.float64))))
    return 10 * math.log10(peak**2 / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Structural similarity (Wang et al. 2004) of H×W, or the mean over the channels of H×W×C.

    Gaussian window 11×11 of sigma 1.5, k1 = 0.01, k2 = 0.03, where the window lies wholly inside; float64.
    Raises InputError for two shapes or a side below 11.
    """
    _check_same_shape(a, b)
    if a.ndim not in (2, 3) or min(a.shape[:2]) < _WINDOW_SIDE:
        raise InputError(f"SSIM needs images of at least {_WINDOW_SIDE}×{_WINDOW_SIDE} pixels, got {a.shape}")
    if a.ndim == 2:
        return _ssim_channel(a.astype(np.float64), b.astype(np.float64), peak)
    channels = [ssim(a[..., channel], b[..., channel], peak) for channel in range(a.shape[2])]
    return math.fsum(channels) / len(channels)


def sharpness(rgb: np.ndarray) -> float:
    """Variance of the Laplacian of a uint8 photo in gray: higher is sharper (or noisier).

    The photo is H×W×3 or H×W. Gray is BT.601 full range rounded to whole levels; the kernel is 3×3 (four
    neighbours, -4 in the centre); the border is mirrored without repeating the edge pixel. These are OpenCV's
    defaults for `Laplacian(gray, CV_64F).var()`, whose gray differs by one level where the sum is near .5.
    """
    gray = np.rint(_gray(rgb, _GRAY_WEIGHTS, offset=0))
    return float(laplace(gray, mode="mirror").var())


def _ssim_channel(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    product = mean_a * mean_b
    power = mean_a**2 + mean_b**2
    # The two variances are only ever needed as their sum, which saves one filtering.
    variances = _window_mean(a**2 + b**2) - power
    covariance = _window_mean(a * b) - product
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((power + c1) * (variances + c2))
    return float(similarity.mean())


def _window_mean(values: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of each window that lies inside H×W: (H-10)×(W-10)."""
    offsets = np.arange(-_WINDOW_RADIUS, _WINDOW_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _WINDOW_SIGMA) ** 2)
    weights /= weights.sum()
    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)
    rows = correlate1d(values, weights, axis=0)[inside]
    return correlate1d(rows, weights, axis=1)[:, inside]


def _crop(image: np.ndarray, border: int) -> np.ndarray:
    height, width = image.shape[:2]
    if border < 0 or min(height, width) - 2 * border < _WINDOW_SIDE:
        raise InputError(
            f"{height}×{width} (height×width) less a border of {border} px is too small to measure: "
            f"{_WINDOW_SIDE}×{_WINDOW_SIDE} pixels must remain"
        )
    return image[border : height - border, border : width - border]


def _gray(image: np.ndarray, weights: np.ndarray, offset: float) -> np.ndarray:
    if image.ndim == 2:
        return image.astype(np.float64)
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"cannot measure shape {image.shape}, expected H×W×3 or H×W: convert it to RGB first")
    return image @ weights + offset


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise InputError(f"cannot compare shapes {a.shape} and {b.shape}: resize or crop one of them first")
