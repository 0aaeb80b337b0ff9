"""Losses of the field: style, contextual and LDL, against piq and the formulas written out."""

from __future__ import annotations

import numpy as np
import piq
import pytest
import torch
from torch import Tensor, nn

from ray_sr.errors import RecipeError
from ray_sr.losses import ContentLoss, build_content_losses, local_variance
from ray_sr.models import Bicubic
from ray_sr.perceptual.feature_losses import contextual_distance
from ray_sr.perceptual.vgg import load_feature_network
from ray_sr.recipes.losses import FeaturesSpec, LDLSpec, LossSpec, PerceptualLossSpec
from ray_sr.recipes.reader import parse_recipe
from tests.test_structure_losses import photos

STYLE = PerceptualLossSpec(network="random", layers={"conv1_2": 1.0, "conv3_1": 0.5}, compare="gram")
CONTEXT = PerceptualLossSpec(network="random", layers={"conv2_2": 1.0}, compare="contextual")


def one(spec: LossSpec, ema: nn.Module | None = None) -> ContentLoss:
    (term,) = build_content_losses([spec], FeaturesSpec(), ema=ema)
    return term


def test_style_is_piqs_divided_by_the_size_of_the_maps() -> None:
    sr, hr = photos(1, 32, 40)
    network = load_feature_network("random", STYLE.layers)
    maps = network(hr)
    positions = {"conv1_2": "3", "conv3_1": "11"}  # of the ReLUs behind them
    assert network.taps == {int(place): name for name, place in positions.items()}
    expected = 0.0
    for name, weight in STYLE.layers.items():
        theirs = piq.StyleLoss(network.features, layers=[positions[name]], weights=[1.0])
        expected += weight * float(theirs(sr, hr)) / maps[name][0].numel() ** 2
    term = one(STYLE)
    assert term.name == "style_random"
    assert float(term(sr, hr)) == pytest.approx(expected, rel=1e-4)


def test_style_does_not_ask_where_things_are() -> None:
    hr = photos(2, 32, 32)[1]
    turned = hr.flip(-1, -2)
    whole = PerceptualLossSpec(network="random", layers={"conv1_1": 1.0}, compare="gram")
    place = whole.model_copy(update={"compare": "features"})
    assert float(one(whole)(turned, hr)) < 0.01 * float(one(place)(turned, hr))


def contextual_by_loops(sr: np.ndarray, hr: np.ndarray) -> float:
    """-log CX of two sets of features, rows of n×C: arXiv 1803.02077, equations 2 to 5, h = 0.5."""
    middle = hr.mean(0)
    sr, hr = sr - middle, hr - middle
    distance = np.array([[1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in hr] for x in sr])
    likeness = []
    for row in distance:
        weights = np.exp((1 - row / (row.min() + 1e-5)) / 0.5)
        likeness.append(weights / weights.sum())
    return float(-np.log(np.array(likeness).max(0).mean()))


def test_contextual_is_the_papers_equations() -> None:
    rng = torch.Generator().manual_seed(3)
    sr, hr = (torch.randn(2, 7, 4, 5, generator=rng) for _ in range(2))
    expected = [contextual_by_loops(*(m[n].flatten(1).T.double().numpy() for m in (sr, hr))) for n in range(2)]
    assert float(contextual_distance(sr, hr)) == pytest.approx(np.mean(expected), rel=1e-4)
    assert one(CONTEXT).name == "contextual_random"


def ldl_by_loops(sr: np.ndarray, hr: np.ndarray, averaged: np.ndarray, window: int) -> float:
    """One photo, 3×H×W: arXiv 2203.09195, equations 4 to 7."""
    error, other = np.abs(hr - sr).sum(0), np.abs(hr - averaged).sum(0)
    half = window // 2
    padded = np.pad(error, half, mode="reflect")
    total = 0.0
    for row in range(error.shape[0]):
        for column in range(error.shape[1]):
            if error[row, column] >= other[row, column]:
                local = padded[row : row + window, column : column + window].var(ddof=1)
                weight = error.var(ddof=1) ** 0.2 * local
                total += weight * np.abs(sr[:, row, column] - hr[:, row, column]).sum()
    return total / sr.size


@pytest.mark.parametrize("window", [3, 7])
def test_ldl_is_the_papers_equations(window: int) -> None:
    sr, hr = photos(4, 24, 32, noise=0.2)
    lr = photos(5, 12, 16)[1]
    ema = Bicubic(2)
    found = float(one(LDLSpec(window=window), ema)(sr, hr, lr))  # type: ignore[arg-type]
    arrays = [[tensor[n].double().numpy() for tensor in (sr, hr, ema(lr))] for n in range(2)]
    assert found == pytest.approx(np.mean([ldl_by_loops(*each, window) for each in arrays]), rel=1e-4)
    assert found > 0


def test_ldl_leaves_alone_what_is_nearer_than_the_average_and_has_gradients_elsewhere() -> None:
    sr, hr = photos(6, 24, 32)
    lr = photos(7, 12, 16)[1]
    term = one(LDLSpec(), Bicubic(2))
    near = (hr + 1e-4 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    assert float(term(near, hr, lr).detach()) < 1e-9
    for start in (sr.clone().requires_grad_(), hr.clone().requires_grad_()):
        term(start, hr, lr).backward()
        assert start.grad is not None
        assert start.grad.isfinite().all()
    assert not list(term.parameters())
    with pytest.raises(ValueError, match="needs the input"):
        term(sr, hr)


def test_variance_of_windows_is_numpys() -> None:
    maps = torch.rand(1, 1, 9, 11, dtype=torch.float64)
    padded = np.pad(maps[0, 0].numpy(), 2, mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    np.testing.assert_allclose(local_variance(maps, 5)[0, 0].numpy(), views.var((-2, -1), ddof=1))


@pytest.mark.parametrize("spec", [STYLE, CONTEXT], ids=lambda spec: spec.compare)
def test_they_pull_towards_the_photo_and_compute_in_float32(spec: LossSpec) -> None:
    sr, hr = photos(8, 32, 32)
    term = one(spec)
    moved: Tensor = sr.clone().requires_grad_()
    loss = term(moved, hr)
    loss.backward()
    assert moved.grad is not None
    step = 1e-3 / float(moved.grad.abs().max())
    assert float(term(sr - step * moved.grad, hr)) < float(loss.detach())
    assert float(term(hr, hr)) < float(loss.detach())
    assert term(sr.bfloat16(), hr).dtype == torch.float32


def test_ldl_without_an_average_is_refused_when_the_recipe_is_read() -> None:
    text = "name: a\nscale: 2\npretrain: {steps: 1, losses: [{kind: ldl}]}\ntraining: {ema: 0}\n"
    with pytest.raises(RecipeError, match=r"ldl compares with the averaged generator: give training\.ema"):
        parse_recipe(text)
