"""Real-ESRGAN's second-order degradation with NumPy and OpenCV, as a torch DataLoader would run it.

    python -m benchmarks.second_order_opencv PHOTOS [--rounds 9]

prints the processor time of one thread for a crop of 96 px: of these steps and of ray-sr's, by turns.

Written from the paper (arXiv 2107.10833) and its x4plus training options, for comparison of speed alone.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: what its products' idle threads spin is no work

import numpy as np

FILTERS = ("INTER_AREA", "INTER_LINEAR", "INTER_CUBIC")


def degrade_opencv(crop: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 H×W×3 to H/scale×W/scale×3."""
    import cv2

    cv2.setNumThreads(1)
    height, width = crop.shape[0], crop.shape[1]
    image: np.ndarray = crop.astype(np.float32) / 255
    image = _convolve(image, _kernel(rng, 3.0))
    image = _resize(image, (height, width), _factor(rng, 0.2, 0.7, 0.15, 1.5), rng)
    image = _jpeg(_noise(image, rng, 30, 3.0), rng)
    if rng.random() < 0.8:
        image = _convolve(image, _kernel(rng, 1.5))
    image = _resize(image, (height // scale, width // scale), _factor(rng, 0.3, 0.4, 0.3, 1.2), rng)
    image = _noise(image, rng, 25, 2.5)
    if rng.random() < 0.5:
        image = _resize(image, (height // scale, width // scale), 1.0, rng)
        image = _jpeg(_final_sinc(image, rng), rng)
    else:
        image = _resize(_jpeg(image, rng), (height // scale, width // scale), 1.0, rng)
        image = _final_sinc(image, rng)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _kernel(rng: np.random.Generator, largest_sigma: float) -> np.ndarray:
    """Gaussian, generalised or plateau shaped, isotropic or not; a sinc filter in one of ten."""
    size = 2 * int(rng.integers(3, 11)) + 1
    if rng.random() < 0.1:
        return _sinc(rng.uniform(math.pi / 3, math.pi), size)
    sigmas = rng.uniform(0.2, largest_sigma, 2)
    shape = rng.choice(6, p=[0.45, 0.25, 0.12, 0.03, 0.12, 0.03])
    if shape in (0, 2, 4):
        sigmas[1] = sigmas[0]
    angle = rng.uniform(-math.pi, math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag(sigmas**2) @ turn.T)
    axis = np.arange(size) - size // 2
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    distance = np.sum((grid @ inverse) * grid, axis=-1)
    if shape < 2:
        kernel = np.exp(-0.5 * distance)
    elif shape < 4:
        kernel = np.exp(-0.5 * distance ** rng.uniform(0.5, 4))
    else:
        kernel = 1 / (1 + distance ** rng.uniform(1, 2))
    return (kernel / kernel.sum()).astype(np.float32)


def _sinc(cutoff: float, size: int) -> np.ndarray:
    from scipy.special import j1

    axis = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    radius[size // 2, size // 2] = 1
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).astype(np.float32)


def _factor(rng: np.random.Generator, grow: float, shrink: float, low: float, high: float) -> float:
    draw = rng.random()
    return rng.uniform(1, high) if draw < grow else rng.uniform(low, 1) if draw < grow + shrink else 1.0


def _resize(image: np.ndarray, sides: tuple[int, int], factor: float, rng: np.random.Generator) -> np.ndarray:
    import cv2

    size = max(1, round(sides[1] * factor)), max(1, round(sides[0] * factor))
    return cv2.resize(image, size, interpolation=getattr(cv2, FILTERS[rng.integers(3)]))


def _noise(image: np.ndarray, rng: np.random.Generator, sigma: float, scale: float) -> np.ndarray:
    gray = rng.random() < 0.4
    if rng.random() < 0.5:
        shape = (*image.shape[:2], 1 if gray else 3)
        noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.uniform(1, sigma) / 255)
    else:
        light = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None] if gray else image
        light = light.clip(0, 1)
        noise = (rng.poisson(light * 256) / 256 - light).astype(np.float32) * np.float32(rng.uniform(0.05, scale))
    return (image + noise).clip(0, 1)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import cv2

    pixels = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 96))])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32) / 255


def _final_sinc(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= 0.8:
        return image
    kernel = _sinc(rng.uniform(math.pi / 3, math.pi), 2 * int(rng.integers(3, 11)) + 1)
    return _convolve(image, kernel)


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


CROPS, SIDE, SCALE = 256, 96, 4  # so many that all random settings come up


def main() -> None:
    import torch

    from ray_sr.bench.machine import Bench
    from ray_sr.data.crops import crop_generator
    from ray_sr.degradations import degrade
    from ray_sr.images import read_photo, rgb8
    from ray_sr.recipes.degradations import SecondOrderSpec

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    photos = [rgb8(read_photo(path)) for path in sorted(options.photos.iterdir())[:8]]
    places = [rng.integers(0, np.array(photos[n % len(photos)].shape[:2]) - SIDE) for n in range(CROPS)]
    crops = np.stack([photos[n % len(photos)][y : y + SIDE, x : x + SIDE] for n, (y, x) in enumerate(places)])

    def generators() -> list[np.random.Generator]:
        return [crop_generator(0, number, 0, 0) for number in range(CROPS)]

    times = Bench(torch.device("cpu"), options.rounds, clock="cpu").take_turns(
        {
            "OpenCV": lambda: [degrade_opencv(c, SCALE, r) for c, r in zip(crops, generators(), strict=True)],
            "ours": lambda: degrade(crops, [SecondOrderSpec()], SCALE, generators()),
        }
    )
    for name in times.seconds:
        print(f"{name:8} {times.median(name) / CROPS * 1000:6.2f} ms a crop")
    print(f"OpenCV / ours: {times.speedup('ours', 'OpenCV')}")


if __name__ == "__main__":
    main()
