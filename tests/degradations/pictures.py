"""Made pictures for the tests of degradations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 height×width×3 with gradients, waves and edges, kept away from black and white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    channels = []
    for _ in range(3):
        angle, period, phase = rng.uniform(0, np.pi), rng.uniform(9, 40), rng.uniform(0, 6)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase)
        edge = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) > 0
        channels.append(128 + 30 * wave + 40 * edge - 20 + 20 * x / width)
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def batch(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([picture(height, width, seed) for seed in range(count)])


def generators(rows: Sequence[int]) -> list[np.random.Generator]:
    """One generator for each row, as a worker makes them: from the row alone."""
    return [np.random.default_rng((7, row)) for row in rows]
