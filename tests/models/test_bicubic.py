from __future__ import annotations

import pytest
import torch

from ray_sr.images.resample import upscale
from ray_sr.models import Bicubic, count_parameters


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_enlarges_as_the_reference_resizing_does(scale: int) -> None:
    image = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    result = Bicubic(scale)(image)
    assert result.shape == (2, 3, 5 * scale, 7 * scale)
    assert torch.equal(result, upscale(image, scale))


def test_has_a_capability_and_nothing_to_train() -> None:
    bicubic = Bicubic(3)
    assert count_parameters(bicubic) == {"parameters": 0, "trainable": 0, "buffers": 0}
    assert bicubic.network is None
    assert bicubic.capability.scale == 3
    assert not bicubic.capability.whole_image_norm


def test_takes_one_pixel() -> None:
    image = torch.full((1, 3, 1, 1), 0.25)
    torch.testing.assert_close(Bicubic(4)(image), torch.full((1, 3, 4, 4), 0.25))
