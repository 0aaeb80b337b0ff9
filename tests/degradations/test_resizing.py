from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ray_sr.degradations.resizing import interpolate, shrink


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(7, 9), (20, 31), (33, 50), (1, 1), (20, 3), (61, 93), (10, 62)])
def test_interpolation_agrees_with_torch(
    sides: tuple[int, int], mode: Literal["area", "bilinear", "bicubic"]
) -> None:
    image = torch.rand(3, 20, 31, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image[None], size=sides, mode=mode)[0].permute(1, 2, 0)
    found = interpolate(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), sides, mode)
    assert found.shape == (*sides, 3)
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "area"])
def test_antialiased_shrinking_flattens_a_chessboard(method: str) -> None:
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    board = ((x + y) % 2).float().expand(1, 3, 48, 48)
    assert torch.allclose(shrink(board, method, 4), torch.tensor(0.5), atol=0.02)  # type: ignore[arg-type]
