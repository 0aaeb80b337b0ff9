"""Back-projection: a result that, made smaller again, is the photo it came from.

What a network invents between the pixels is its own affair; what it changes of the pixels themselves is error.
That error is measured by shrinking the result, enlarged, and added, until it is below what rounding makes
(Irani and Peleg, Improving Resolution by Image Registration, 1991, section 3).
"""

from __future__ import annotations

import numpy as np
import torch

from ray_sr.images.resample import resize_to

MOST_ROUNDS = 60
BEST_DB = 120.0  # reported where the two are equal

_TOLERANCE = 0.25  # levels of the photo: half of what rounding to a level allows


def back_project(result: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """The float32 result, H×W×C in [0, 1], changed so that its shrunk copy is `photo`, uint8 or uint16 h×w×C.

    Needs H >= h and W >= w. Ends after `MOST_ROUNDS` where clipped highlights do not allow equality.
    """
    levels = np.iinfo(photo.dtype).max
    wanted = _to_batch(photo, torch.float32) / levels
    larger = _to_batch(result, torch.float32).clamp(0, 1)
    for _ in range(MOST_ROUNDS):
        error = wanted - resize_to(larger, *wanted.shape[2:])
        if error.abs().max() * levels <= _TOLERANCE:
            break
        larger = larger.add_(resize_to(error, *larger.shape[2:])).clamp_(0, 1)
    return larger[0].permute(1, 2, 0).numpy()


def consistency_db(result: np.ndarray, photo: np.ndarray) -> float:
    """PSNR in dB, over all channels, between the shrunk result and the photo, both of one whole-number type.

    At most `BEST_DB`.
    """
    levels = np.iinfo(photo.dtype).max
    wanted = _to_batch(photo, torch.float64) / levels
    shrunk = resize_to(_to_batch(result, torch.float64) / levels, *wanted.shape[2:])
    error = float((shrunk - wanted).square().mean())
    return min(BEST_DB, -10 * float(np.log10(error))) if error else BEST_DB


def _to_batch(picture: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    values = picture.astype(np.float32)
    return torch.from_numpy(values).to(dtype).permute(2, 0, 1)[None]
