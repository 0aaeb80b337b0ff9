"""Convolution of an image with one small kernel, by FFT: its cost does not grow with the kernel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch


def convolve(image: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """Convolves every channel of float32 C×H×W with k×l; same shape out.

    The kernel's origin is at (k // 2, l // 2). Beyond its border the image is reflected without repeating the
    edge pixel, as often as the kernel reaches, so that images smaller than the kernel are blurred too.
    """
    height, width = image.shape[-2:]
    padded = _reflected(image, kernel.shape)
    sides = [_fast_length(side) for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, s=sides).numpy()
    # Multiplied by NumPy: the last bits of torch's complex product depend on its number of threads.
    spectrum *= torch.fft.rfft2(torch.from_numpy(kernel.astype(np.float32)), s=sides).numpy()
    whole = torch.fft.irfft2(torch.from_numpy(spectrum), s=sides)
    top, left = (side - 1 for side in kernel.shape)
    return whole[..., top : top + height, left : left + width].contiguous()


def _reflected(image: torch.Tensor, kernel_shape: tuple[int, ...]) -> torch.Tensor:
    rows, columns = (
        _reflected_indices(side, reach) for side, reach in zip(image.shape[-2:], kernel_shape, strict=True)
    )
    return image.index_select(-2, rows).index_select(-1, columns)


@lru_cache(maxsize=256)
def _reflected_indices(side: int, reach: int) -> torch.Tensor:
    """Positions -(reach - 1 - reach // 2) … side - 1 + reach // 2, folded back into 0 … side - 1.

    The result at y needs the input from y + reach // 2 - (reach - 1) to y + reach // 2.
    """
    after = reach // 2
    positions = torch.arange(after - reach + 1, side + after)
    folded = positions.remainder(max(2 * side - 2, 1))
    return torch.minimum(folded, 2 * side - 2 - folded)


@lru_cache(maxsize=1024)
def _fast_length(least: int) -> int:
    """The smallest even length from `least` on that is a product of 2, 3 and 5: FFTs are fast there."""
    length = least + least % 2
    while not _is_smooth(length):
        length += 2
    return length


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1
