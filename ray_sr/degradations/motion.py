"""Blur by camera shake: a random trajectory, its exposed part as a kernel, and blurring with it.

The trajectory is that of Boracchi and Foi, "Modeling the performance of image restoration from motion blur"
(2012), with the constants of DeblurGAN (arXiv 1711.07064, section 4): a point of constant speed that is
pushed by small random impulses, pulled back to where it started, and now and then jolted backwards.
"""

from __future__ import annotations

import cmath
import math

import numpy as np

from ray_sr.degradations.convolution import convolve
from ray_sr.degradations.pixels import Pixels, clamp
from ray_sr.recipes.degradations import MotionBlurSpec

POINTS = 2000
LENGTH = 60.0  # of the whole path; the pull back to the start depends on it
ANXIETY = 0.005  # how strongly impulses, pull and jolts act
MOST_JOLTS, MOST_PULL, MOST_SHAKE = 0.2, 0.7, 10.0


def motion_blur(image: Pixels, spec: MotionBlurSpec, rng: np.random.Generator) -> Pixels:
    """Blurs float32 H×W×C with a kernel drawn by `spec`, or leaves it as it is. Clamps to [0, 1].

    With a gamma other than 1 the values are raised to it before and to its inverse after: light adds up
    linearly, stored values do not. Brightness and contrast stay: the kernel sums to 1.
    """
    if rng.random() >= spec.probability:
        return image
    kernel = motion_kernel(spec.size, rng.uniform(*spec.exposure), rng)
    light = _power(clamp(image.copy()), spec.gamma)
    return _power(clamp(convolve(light, kernel)), 1 / spec.gamma)


def _power(image: Pixels, exponent: float) -> Pixels:
    if exponent == 1:  # the default gamma; computing this power takes as long as any other
        return image
    return image ** np.float32(exponent)


def motion_kernel(size: int, exposure: float, rng: np.random.Generator) -> np.ndarray:
    """float64 size×size that sums to 1: the first `exposure` (0 to 1) of a random trajectory.

    The whole trajectory is as long as the kernel is wide. The centre of mass is on pixel (size // 2,
    size // 2), so that the blurred photo is not displaced against the sharp one.
    """
    path = trajectory(rng)
    exposed = path[: max(1, round(exposure * POINTS))]
    reach = (size - 1) // 2
    # No point of a path walked at constant speed is farther from its centre of mass than half its length.
    return _splat((exposed - exposed.mean()) * (2 * reach / LENGTH), size)


def trajectory(rng: np.random.Generator) -> np.ndarray:
    """complex128 of POINTS positions (x right, y down) from 0 on, LENGTH long, at constant speed."""
    jolts = rng.uniform(0, MOST_JOLTS) * ANXIETY > rng.random(POINTS - 1)
    turns = 1 + np.where(jolts, 2 * np.exp(1j * (math.pi + rng.uniform(-0.5, 0.5, POINTS - 1))), 0)
    pull = rng.uniform(0, MOST_PULL) * ANXIETY
    impulses = rng.standard_normal((POINTS - 1, 2)).view(np.complex128)[:, 0]
    impulses *= rng.uniform(0, MOST_SHAKE) * ANXIETY
    heading = cmath.rect(1, rng.uniform(0, 2 * math.pi))
    step = LENGTH / (POINTS - 1)
    position, path = 0j, [0j]
    for turn, impulse in zip(turns.tolist(), impulses.tolist(), strict=True):
        heading = heading * turn + impulse - pull * position
        heading /= abs(heading)
        position += step * heading
        path.append(position)
    return np.array(path)


def _splat(points: np.ndarray, size: int) -> np.ndarray:
    """Shares each point, an offset from pixel size // 2, among the four pixels around it."""
    positions = np.clip(np.stack([points.imag, points.real]) + size // 2, 0, size - 1)
    corner = np.minimum(positions.astype(np.int64), size - 2)
    down, right = positions - corner
    row, column = corner
    kernel = np.zeros(size * size)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (down if dy else 1 - down) * (right if dx else 1 - right)
        kernel += np.bincount((row + dy) * size + column + dx, share, minlength=size * size)
    return kernel.reshape(size, size) / len(points)
