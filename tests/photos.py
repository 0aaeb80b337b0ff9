"""Photographs for tests: real ones that scikit-image carries, and made-up ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data


def real_photos() -> dict[str, np.ndarray]:
    """Name -> uint8 H×W×3."""
    return {
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "chelsea": data.chelsea(),
        "rocket": data.rocket(),
    }


def write_real_photos(folder: Path, side: int = 300) -> Path:
    """PNG files of the middle of each real photo, at most `side` px wide and high."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in real_photos().items():
        top, left = (max(0, (n - side) // 2) for n in pixels.shape[:2])
        Image.fromarray(pixels[top : top + side, left : left + side]).save(folder / f"{name}.png")
    return folder


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
