"""Convolution of an image with one small kernel, by OpenCV: two passes where the kernel allows, else one or FFT."""

from __future__ import annotations

import cv2
import numpy as np

from ray_sr.degradations.pixels import Pixels

# Crops are made by many processes and beside training: OpenCV's own threads would only wait for each other.
cv2.setNumThreads(1)


def convolve(pixels: Pixels, kernel: np.ndarray) -> Pixels:
    """Convolves every channel of float32 H×W×C with k×l, or with an odd row both across and down; same shape out.

    The kernel's origin is at (k // 2, l // 2). Beyond its border the image is reflected without repeating the
    edge pixel, as often as the kernel reaches, so that images smaller than the kernel are blurred too.
    """
    if kernel.ndim == 1:
        row = kernel[::-1].astype(np.float32)
        blurred = cv2.sepFilter2D(pixels, -1, row, row, borderType=cv2.BORDER_REFLECT_101)
    else:
        rows, columns = kernel.shape
        anchor = (
            columns - 1 - columns // 2,
            rows - 1 - rows // 2,
        )  # OpenCV correlates
        turned = kernel[::-1, ::-1].astype(np.float32)
        blurred = cv2.filter2D(pixels, -1, turned, anchor=anchor, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred).reshape(pixels.shape)
