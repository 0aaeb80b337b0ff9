"""The adversarial losses against their formulas; gradients; the sides of the GAN game; the gradient penalty."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sr.losses import AdversarialLoss
from ray_sr.recipes.losses import AdversarialSpec
from tests.perceptual.test_vgg import photos
from tests.test_losses import arrays, seeded

KINDS = ("bce", "lsgan", "hinge", "wasserstein", "relativistic")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Modules that a test builds start from the same weights every time."""
    torch.manual_seed(0)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (6, 1)), generator=seeded(seed)) * 2


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float, float]]] = {
    "bce": lambda r, f: (
        -np.log(sigmoid(r)).mean() / 2,
        -np.log(1 - sigmoid(f)).mean() / 2,
        -np.log(sigmoid(f)).mean(),
    ),
    "lsgan": lambda r, f: (((r - 1) ** 2).mean() / 2, (f**2).mean() / 2, ((f - 1) ** 2).mean() / 2),
    "hinge": lambda r, f: (np.maximum(0, 1 - r).mean(), np.maximum(0, 1 + f).mean(), -f.mean()),
    "wasserstein": lambda r, f: (-r.mean(), f.mean(), -f.mean()),
    "relativistic": lambda r, f: (
        -np.log(sigmoid(r - f.mean())).mean() / 2,
        -np.log(1 - sigmoid(f - r.mean())).mean() / 2,
        -(np.log(1 - sigmoid(r - f.mean())).mean() + np.log(sigmoid(f - r.mean())).mean()) / 2,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 1), (2, 1, 5, 4)])
def test_adversarial_losses_follow_their_formulas(kind: str, shape: tuple[int, ...]) -> None:
    loss = AdversarialLoss(AdversarialSpec(kind=kind))
    real, fake = logits(1, *shape), logits(2, *shape)
    both = {"real": real, "fake": fake} if loss.needs_both else {"real": None, "fake": None}
    values = (
        loss.real_loss(real, both["fake"]),
        loss.fake_loss(fake, both["real"]),
        loss.generator_loss(fake, both["real"]),
    )
    assert [float(value) for value in values] == pytest.approx(FORMULAS[kind](*arrays(real, fake)), rel=1e-5)
    assert all(value.shape == () for value in values)


@pytest.mark.parametrize("kind", ["bce", "relativistic"])
def test_discriminator_that_cannot_tell_has_log_2(kind: str) -> None:
    loss = AdversarialLoss(AdversarialSpec(kind=kind))
    nothing = torch.zeros(4, 1)
    total = loss.real_loss(nothing, nothing) + loss.fake_loss(nothing, nothing)
    assert float(total) == pytest.approx(math.log(2))
    assert float(loss.generator_loss(nothing, nothing)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_push_logits_the_right_way(kind: str, dtype: torch.dtype) -> None:
    """Lowering a loss raises real logits and lowers fake ones; for the generator the fake ones rise."""
    loss = AdversarialLoss(AdversarialSpec(kind=kind))
    real, fake = (torch.full((4, 1), value, dtype=dtype) for value in (0.3, 0.4))
    for side, own, other, sign in (
        (loss.real_loss, real, fake, -1),
        (loss.fake_loss, fake, real, 1),
        (loss.generator_loss, fake, real, -1),
    ):
        leaf = own.clone().requires_grad_()
        value = side(leaf, other)
        value.backward()
        assert value.dtype == torch.float32
        assert leaf.grad is not None
        assert bool((leaf.grad * sign > 0).all())


@pytest.mark.parametrize("kind", ["bce", "relativistic"])
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extreme_logits_stay_finite(kind: str, size: float) -> None:
    loss = AdversarialLoss(AdversarialSpec(kind=kind))
    own, other = torch.full((3, 1), size, requires_grad=True), torch.zeros(3, 1)
    for side in (loss.real_loss, loss.fake_loss, loss.generator_loss):
        value = side(own, other)
        (gradient,) = torch.autograd.grad(value, own)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_relativistic_names_what_it_needs() -> None:
    loss = AdversarialLoss(AdversarialSpec(kind="relativistic"))
    assert loss.needs_both
    assert not AdversarialLoss(AdversarialSpec(kind="bce")).needs_both
    with pytest.raises(ValueError, match="both sides"):
        loss.generator_loss(torch.zeros(1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_two_backward_passes_give_the_gradient_of_the_whole(kind: str) -> None:
    """D(real) and D(fake) are backpropagated apart; the sum is the textbook loss's gradient."""
    loss = AdversarialLoss(AdversarialSpec(kind=kind))
    critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double().requires_grad_()
    with torch.no_grad():
        for seed, parameter in enumerate(critic.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    real, fake = (torch.randn(7, 5, generator=seeded(seed), dtype=torch.float64) for seed in (5, 6))
    if kind == "relativistic":
        r, f = critic(real), critic(fake)
        whole = (F.softplus(f.mean() - r).mean() + F.softplus(f - r.mean()).mean()) / 2
    else:
        whole = loss.real_loss(critic(real)) + loss.fake_loss(critic(fake))
    expected = torch.autograd.grad(whole, list(critic.parameters()))

    with torch.no_grad():
        fake_logits = critic(fake)
    real_logits = critic(real)
    loss.real_loss(real_logits, fake_logits).backward()
    loss.fake_loss(critic(fake), real_logits).backward()
    for parameter, gradient in zip(critic.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------- smooth and noisy labels


def least_squares_labels(spec: AdversarialSpec, side: str, rng: torch.Generator | None) -> Tensor:
    """The labels that a least-squares loss uses, read from its gradient at logits of zero: -label / count."""
    zeros = torch.zeros(20_000, 1, requires_grad=True)
    value = getattr(AdversarialLoss(spec), side)(zeros, rng=rng)
    (gradient,) = torch.autograd.grad(value, zeros)
    return -gradient * len(zeros)


def test_smoothing_moves_only_real_labels() -> None:
    spec = AdversarialSpec(kind="lsgan", label_smoothing=0.1)
    assert least_squares_labels(spec, "real_loss", None).unique().tolist() == pytest.approx([0.9])
    assert least_squares_labels(spec, "fake_loss", None).unique().tolist() == [0]
    assert float(AdversarialLoss(spec).generator_loss(torch.ones(3, 1))) == 0


def test_smoothed_bce_is_torchs_bce_of_the_label() -> None:
    real = logits(3)
    loss = AdversarialLoss(AdversarialSpec(label_smoothing=0.1)).real_loss(real)
    expected = F.binary_cross_entropy(real.sigmoid(), torch.full_like(real, 0.9)) / 2
    torch.testing.assert_close(loss, expected)


def test_noise_moves_labels_inwards_uniformly_and_seeded() -> None:
    spec = AdversarialSpec(kind="lsgan", label_smoothing=0.1, label_noise=0.2)
    real = least_squares_labels(spec, "real_loss", seeded(1))
    fake = least_squares_labels(spec, "fake_loss", seeded(2))
    for labels, low, high in ((real, 0.7, 0.9), (fake, 0.0, 0.2)):
        assert labels.min() == pytest.approx(low, abs=1e-3)
        assert labels.max() == pytest.approx(high, abs=1e-3)
        assert labels.mean() == pytest.approx((low + high) / 2, abs=3e-3)
        assert labels.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.03)
    assert torch.equal(real, least_squares_labels(spec, "real_loss", seeded(1)))
    assert not torch.equal(real, least_squares_labels(spec, "real_loss", seeded(3)))


def test_noise_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        AdversarialLoss(AdversarialSpec(label_noise=0.1)).real_loss(torch.zeros(2, 1))


# ------------------------------------------------------------------------------------ gradient penalty

WASSERSTEIN = AdversarialLoss(AdversarialSpec(kind="wasserstein", weight_clip=0.01, gradient_penalty=10))


class Recorder(nn.Module):
    """A critic of ½‖x‖², whose gradient is x itself; keeps what it was asked."""

    def forward(self, values: Tensor) -> Tensor:
        self.seen = values.detach()
        return values.square().flatten(1).sum(dim=1, keepdim=True) / 2


def test_penalty_of_a_linear_critic_is_known() -> None:
    """D(x) = w·x has the gradient w everywhere, so the penalty is (‖w‖ - 1)², its slope 2(‖w‖ - 1) w/‖w‖."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))
    penalty = WASSERSTEIN.gradient_penalty(critic, photos(1, 8, 4), photos(2, 8, 4), seeded(0))
    (weight,) = (p for p in critic.parameters() if p.ndim == 2)
    norm = weight.norm()
    torch.testing.assert_close(penalty, (norm - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * (norm - 1) * weight.detach() / norm)


def test_penalty_takes_the_norm_of_each_photo() -> None:
    photo = torch.ones(3, 3, 4, 4) * torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    penalty = WASSERSTEIN.gradient_penalty(Recorder(), photo, photo, seeded(0))
    norms = np.array([0.0, 0.5, 1.0]) * math.sqrt(48)
    assert penalty.item() == pytest.approx(((norms - 1) ** 2).mean(), rel=1e-5)


def test_penalty_is_taken_at_one_random_place_for_each_photo() -> None:
    critic = Recorder()
    real, fake = photos(1, 8, 64), photos(2, 8, 64)
    WASSERSTEIN.gradient_penalty(critic, real, fake, seeded(3))
    place = (critic.seen - fake) / (real - fake)
    middle = place.flatten(1).median(dim=1).values
    torch.testing.assert_close(critic.seen, torch.lerp(fake, real, middle.view(-1, 1, 1, 1)))
    assert 0 <= middle.min() < 0.1
    assert 0.9 < middle.max() <= 1
    first = critic.seen
    WASSERSTEIN.gradient_penalty(critic, real, fake, seeded(3))
    assert torch.equal(critic.seen, first)


def test_penalty_of_a_patch_critic_is_that_of_its_mean_logit() -> None:
    patch = nn.Conv2d(3, 1, 3, stride=2)
    mean = nn.Sequential(patch, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    real, fake = photos(1, 9), photos(2, 9)
    first, second = (WASSERSTEIN.gradient_penalty(critic, real, fake, seeded(0)) for critic in (patch, mean))
    torch.testing.assert_close(first, second)


def test_penalty_reaches_the_critic_but_not_the_generator() -> None:
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
    fake = photos(2, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        penalty = WASSERSTEIN.gradient_penalty(critic, photos(1, 8), fake, seeded(0))
    assert penalty.dtype == torch.float32
    penalty.backward()
    assert fake.grad is None
    weights = [p for p in critic.parameters() if p.ndim > 1]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in weights)


def test_penalty_of_a_flat_critic_is_one_with_a_finite_gradient() -> None:
    linear = nn.Linear(3 * 64, 1)
    nn.init.zeros_(linear.weight)
    critic = nn.Sequential(nn.Flatten(), linear)
    penalty = WASSERSTEIN.gradient_penalty(critic, photos(1, 8), photos(2, 8), seeded(0))
    penalty.backward()
    assert penalty.item() == 1
    assert linear.weight.grad is not None
    assert linear.weight.grad.isfinite().all()


# ---------------------------------------------------------------------------------- clipping, accuracy


def test_clipping_bounds_every_parameter() -> None:
    linear = nn.Linear(50, 50)
    critic = nn.Sequential(linear, nn.BatchNorm1d(50))
    before = linear.weight.detach().clone()
    AdversarialLoss(AdversarialSpec(kind="wasserstein")).clip_weights(critic)
    assert torch.equal(linear.weight.detach(), before)
    WASSERSTEIN.clip_weights(critic)
    assert max(p.detach().abs().max().item() for p in critic.parameters()) == pytest.approx(0.01)
    assert torch.equal(linear.weight.detach(), before.clamp(-0.01, 0.01))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bce", (0.75, 0.5)),
        ("hinge", (0.75, 0.5)),
        ("lsgan", (0.5, 0.75)),
        ("wasserstein", (0.75, 1.0)),
        ("relativistic", (0.75, 1.0)),
    ],
)
def test_accuracy_counts_each_side(kind: str, expected: tuple[float, float]) -> None:
    real = torch.tensor([[-1.0], [0.4], [1.0], [4.0]])  # mean 1.1
    fake = torch.tensor([[-2.0], [-0.5], [0.3], [1.0]])  # mean -0.3
    shares = AdversarialLoss(AdversarialSpec(kind=kind)).accuracy(real, fake)
    assert [float(share) for share in shares] == pytest.approx(expected)
    assert all(isinstance(share, Tensor) and share.shape == () for share in shares)
