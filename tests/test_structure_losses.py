"""Losses that look beyond single pixels: Fourier transform and MS-SSIM, against other libraries; distillation."""

from __future__ import annotations

import piq
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from ray_sr.errors import RecipeError
from ray_sr.losses import ContentLoss, build_content_losses, ms_ssim
from ray_sr.models import Bicubic
from ray_sr.recipes.losses import DistillSpec, FeaturesSpec, FourierLossSpec, LossSpec, StructuralLossSpec
from ray_sr.recipes.reader import parse_recipe


def photos(seed: int, height: int = 176, width: int = 192, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Smooth colours, and the same under noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 9, 9, generator=generator)
    clean = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    noisy = (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    return noisy, clean


def one(spec: LossSpec, **teachers: nn.Module) -> ContentLoss:
    (term,) = build_content_losses([spec], FeaturesSpec(), teachers=teachers)
    return term


@pytest.mark.parametrize("size", [(12, 16), (13, 15), (6, 1), (1, 2)])
def test_fourier_loss_is_the_l1_of_the_whole_transform(size: tuple[int, int]) -> None:
    sr, hr = photos(1, *size)
    difference = torch.fft.fft2(sr.double()) - torch.fft.fft2(hr.double())
    expected = torch.stack([difference.real, difference.imag]).abs().mean()
    assert float(one(FourierLossSpec())(sr, hr)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_ms_ssim_is_piqs(noise: float) -> None:
    sr, hr = photos(2, noise=noise)
    for weights in ([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], [0.0448, 0.2856, 0.3001]):
        levels = len(weights)
        expected = piq.multi_scale_ssim(sr.double(), hr.double(), scale_weights=torch.tensor(weights).double())
        assert float(ms_ssim(sr.double(), hr.double(), levels)) == pytest.approx(float(expected), abs=1e-7)
        loss = float(one(StructuralLossSpec(levels=levels))(sr, hr))
        assert loss == pytest.approx(1 - float(expected), abs=1e-4)


def test_one_level_of_ms_ssim_is_ssim() -> None:
    sr, hr = photos(3, 40, 30)
    expected = piq.ssim(sr, hr, downsample=False)
    assert float(ms_ssim(sr, hr, 1)) == pytest.approx(float(expected), abs=1e-5)
    torchs = structural_similarity_index_measure(sr, hr, data_range=1.0)
    assert float(ms_ssim(sr, hr, 1)) == pytest.approx(float(torchs), abs=0.02)  # it pads the border


def test_ms_ssim_of_opposites_is_small_and_has_gradients() -> None:
    hr = photos(4)[1]
    sr = (1 - hr).requires_grad_()
    loss = one(StructuralLossSpec())(sr, hr)
    loss.backward()
    assert 0.5 < float(loss.detach()) < 1
    assert sr.grad is not None
    assert sr.grad.isfinite().all()


@pytest.mark.parametrize("spec", [FourierLossSpec(), StructuralLossSpec()], ids=lambda spec: spec.kind)
def test_structure_losses_pull_towards_the_photo(spec: LossSpec) -> None:
    sr, hr = photos(5)
    loss = one(spec)
    assert float(loss(hr, hr)) == pytest.approx(0, abs=1e-6)
    moved = sr.clone().requires_grad_()
    loss(moved, hr).backward()
    assert moved.grad is not None
    step = 1e-3 / float(moved.grad.abs().max())
    assert float(loss(sr - step * moved.grad, hr)) < float(loss(sr, hr))
    assert loss(sr.bfloat16(), hr).dtype == torch.float32


@pytest.mark.parametrize(
    ("levels", "crop", "right"), [(5, 176, True), (5, 172, False), (3, 44, True), (3, 40, False)]
)
def test_a_crop_too_small_for_ms_ssim_is_refused_when_the_recipe_is_read(
    levels: int, crop: int, right: bool
) -> None:
    text = f"""
name: small
data: {{crop: {crop}}}
pretrain: {{steps: 1, losses: [{{kind: ms_ssim, levels: {levels}}}]}}
"""
    if right:
        assert parse_recipe(text).data.crop == crop
        hr = photos(6, crop, crop)[1]
        assert float(ms_ssim(hr, hr, levels)) == pytest.approx(1, abs=1e-6)
        return
    with pytest.raises(RecipeError, match=f"ms_ssim with {levels} levels needs data.crop {crop + 4} or more"):
        parse_recipe(text)


class Counting(nn.Module):
    """Enlarges by 2 and counts how often it is asked, and whether gradients would be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Bicubic(2)
        self.asked: list[bool] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.asked.append(torch.is_grad_enabled())
        enlarged: Tensor = self.inside(batch)
        return enlarged


def test_distillation_is_the_l1_to_the_teachers_output() -> None:
    teacher = Counting()
    lr, hr = photos(7, 8, 8)[1], photos(8, 16, 16)[1]
    sr = hr.clone().requires_grad_()
    term = one(DistillSpec(teacher="master"), master=teacher)
    loss = term(sr, hr, lr)
    assert float(loss.detach()) == pytest.approx(float((hr - Bicubic(2)(lr)).abs().mean()), rel=1e-6)
    assert teacher.asked == [False]
    assert float(term(Bicubic(2)(lr), hr, lr)) == 0
    loss.backward()
    assert sr.grad is not None
    with pytest.raises(ValueError, match="needs the input"):
        term(sr, hr)
