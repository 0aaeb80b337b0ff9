"""One step of each stage: right network, right gradients, right losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from ray_sr.recipes.losses import AdversarialSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState, step_seed
from ray_sr.training.steps import GanStep, MicroBatch, build_step
from tests.photos import real_photos

RECIPE = """
name: tiny
scale: 2
data: {crop: 32, batch: 4}
generator: {kind: msrresnet, blocks: 1, channels: 8}
discriminator: {kind: vgg, channels: 4}
pretrain: {steps: 4, losses: [{kind: l1}], optimizer: {lr: 1e-3}}
gan:
  steps: 4
  losses: [{kind: l1}, {kind: perceptual, network: random, layers: {conv2_2: 1}}]
training: {precision: fp32, channels_last: false}
"""
FLOAT32 = Compute(torch.device("cpu"), None, torch.contiguous_format)


def state_of(*overrides: str, stage: str = "gan", compute: Compute = FLOAT32) -> TrainState:
    recipe = parse_recipe(RECIPE, [*(["pretrain=null"] if stage == "gan" else []), *overrides])
    return TrainState(recipe, compute)


def gan_step(state: TrainState) -> GanStep:
    step = build_step(state)
    assert isinstance(step, GanStep)
    return step


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four 32 px crops of a real photo and their halves."""
    photo = torch.from_numpy(real_photos()["coffee"].copy()).permute(2, 0, 1).float() / 255
    places = torch.randint(0, 350, (4, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    hr = torch.stack([photo[:, top : top + 32, left : left + 32] for top, left in places])
    return nn.functional.avg_pool2d(hr, 2), hr


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return any(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def test_pretraining_lowers_the_loss() -> None:
    state = state_of("generator={kind: srresnet, blocks: 1, channels: 8}", stage="pretrain")
    step = build_step(state)
    lr, hr = batch()
    losses = [float(step.run([MicroBatch(lr, hr)], number)["g_l1"]) for number in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_generators_update_leaves_no_trace_in_the_discriminator_and_the_other_way_round() -> None:
    state = state_of()
    step = gan_step(state)
    assert state.discriminator
    lr, hr = batch()
    critic = snapshot(state.discriminator)
    part = MicroBatch(lr, hr)
    judgements, _ = step._update_generator([part], 0)
    assert not moved(critic, state.discriminator)
    assert all(parameter.grad is None for parameter in state.discriminator.parameters())
    generator = snapshot(state.generator)
    gradients = {name: p.grad.clone() for name, p in state.generator.named_parameters() if p.grad is not None}
    step._update_discriminator([part], judgements, 0)
    assert not moved(generator, state.generator)
    assert moved(critic, state.discriminator)
    for name, parameter in state.generator.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[name])


def test_discriminator_loss_and_gradient_equal_one_joint_backward() -> None:
    state = state_of()
    step = gan_step(state)
    assert state.discriminator
    twin = copy.deepcopy(state.discriminator)
    lr, hr = batch()
    sr = state.generator(lr).detach()
    losses = step._update_discriminator([MicroBatch(lr, hr)], [step._judge(sr, hr)], 0)
    real, fake = twin(hr), twin(sr)
    bce = nn.functional.binary_cross_entropy_with_logits
    joint = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
    joint.backward()
    assert float(losses["d_loss"]) == pytest.approx(float(joint.detach()), rel=1e-5)
    for ours, theirs in zip(state.discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bce", "relativistic"])
def test_sharing_a_forward_pass_gives_the_gradients_of_passes_apart(kind: str) -> None:
    """Against the textbook: one pass and one backward for each network's loss, on networks with BatchNorm."""
    state = state_of(f"gan.adversarial={{kind: {kind}, weight: 0.3}}")
    assert state.discriminator
    step, generator, critic = gan_step(state), copy.deepcopy(state.generator), copy.deepcopy(state.discriminator)
    lr, hr = batch()
    step.run([MicroBatch(lr, hr)], 0)

    def against(first: torch.Tensor, second: torch.Tensor, label: float) -> torch.Tensor:
        centred = first - second.mean() if kind == "relativistic" else first
        return nn.functional.binary_cross_entropy_with_logits(centred, torch.full_like(first, label))

    sr = generator(lr)
    content = sum(term.weight * term(sr, hr) for term in step.losses)
    fake, real = critic(sr), critic(hr)
    adversarial = against(fake, real, 1.0)
    if kind == "relativistic":
        adversarial = (adversarial + against(real.detach(), fake, 0.0)) / 2
    (content + 0.3 * adversarial).backward()
    critic.zero_grad()
    fake, real = critic(sr.detach()), critic(hr)
    ((against(real, fake, 1.0) + against(fake, real, 0.0)) / 2).backward()
    for ours, textbook in ((state.generator, generator), (state.discriminator, critic)):
        for (name, mine), theirs in zip(ours.named_parameters(), textbook.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            size = float(theirs.grad.abs().max())
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3 * size + 1e-9, rtol=1e-3, msg=name)


def test_feature_matching_adds_the_l1_of_the_discriminators_features_to_the_generators_loss() -> None:
    """Against the same written out: forward passes apart, one backward pass through the generator."""
    matching = state_of(
        "gan.adversarial={kind: bce, feature_matching: 10}", "gan.losses=[]", "discriminator.kind=vgg"
    )
    twin = state_of("gan.losses=[]")
    lr, hr = batch()
    step = gan_step(matching)
    found = step._pull_generator(MicroBatch(lr, hr))[1]
    generator, critic = twin.generator, twin.discriminator
    assert critic

    def features(photos: torch.Tensor) -> list[torch.Tensor]:
        """Before each norm of BasicSR's VGG."""
        made, values = [], photos
        for name in critic.names:  # type: ignore[union-attr]
            made.append(getattr(critic, f"conv{name}")(values))
            values = nn.functional.leaky_relu(getattr(critic, f"bn{name}")(made[-1]), 0.2)
        return made

    sr = generator(lr)
    pairs = zip(features(sr), features(hr), strict=True)
    distance = torch.stack([(one - other.detach()).abs().mean() for one, other in pairs]).mean()
    adversarial = nn.functional.softplus(-critic(sr)).mean()
    (10 * distance + 1e-3 * adversarial).backward()
    torch.testing.assert_close(found["g_feature_matching"], distance.detach())
    torch.testing.assert_close(found["g_total"].detach(), (10 * distance + 1e-3 * adversarial).detach())
    for (name, one), other in zip(matching.generator.named_parameters(), generator.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    step.run([MicroBatch(lr, hr)], 0)
    assert not any(module._forward_hooks for module in step.discriminator.modules())


def test_an_undecided_discriminator_has_the_loss_ln_2() -> None:
    state = state_of("discriminator={kind: tiny}")
    assert state.discriminator
    with torch.no_grad():
        for parameter in state.discriminator.parameters():
            parameter.zero_()
    lr, hr = batch()
    losses = gan_step(state).run([MicroBatch(lr, hr)], 0)
    assert float(losses["d_loss"]) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    "adversarial",
    [
        {"kind": "bce", "label_smoothing": 0.1, "label_noise": 0.1},
        {"kind": "lsgan"},
        {"kind": "hinge"},
        {"kind": "relativistic"},
        {"kind": "wasserstein", "gradient_penalty": 10, "critic_updates": 3},
        {"kind": "wasserstein", "weight_clip": 0.01},
    ],
)
def test_every_game_moves_both_networks_and_stays_finite(adversarial: dict[str, Any]) -> None:
    state = state_of()
    assert state.recipe.gan
    gan = state.recipe.gan.model_copy(update={"adversarial": AdversarialSpec(**adversarial)})
    state.recipe = state.recipe.model_copy(update={"gan": gan})
    step = gan_step(state)
    assert state.discriminator
    before = snapshot(state.generator), snapshot(state.discriminator)
    for number in range(3):
        lr, hr = batch(number)
        losses = step.run([MicroBatch(lr, hr, number)], number)
        assert all(torch.isfinite(value) for value in losses.values()), losses
    assert moved(before[0], state.generator)
    assert moved(before[1], state.discriminator)
    if (clip := adversarial.get("weight_clip")) is not None:
        assert max(float(p.detach().abs().max()) for p in state.discriminator.parameters()) <= clip


def test_critic_updates_are_counted() -> None:
    state = state_of("gan.adversarial={kind: wasserstein, critic_updates: 5}")
    step = gan_step(state)
    calls: list[int] = []
    assert state.discriminator
    state.discriminator.register_forward_hook(lambda *_: calls.append(1))
    step.run([MicroBatch(*batch())], 0)
    assert len(calls) == 2 * 5  # real and fake for each update; the first fake one serves the generator, too


def test_bf16_channels_last_stays_near_float32() -> None:
    fast = Compute(torch.device("cpu"), torch.bfloat16, torch.channels_last)
    lr, hr = batch()
    wanted = gan_step(state_of()).run([MicroBatch(lr, hr)], 0)
    part = MicroBatch(*(t.to(memory_format=torch.channels_last) for t in (lr, hr)))
    got = gan_step(state_of(compute=fast)).run([part], 0)
    for name in ("g_l1", "d_loss", "g_adversarial"):
        assert float(got[name]) == pytest.approx(float(wanted[name]), rel=0.03)


@pytest.mark.parametrize("adversarial", ["{kind: bce}", "{kind: wasserstein, critic_updates: 2}"])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(adversarial: str) -> None:
    # Networks without norms; a large eps, since Adam would blow up the last bit of gradients near zero.
    smooth = "gan.discriminator_optimizer={lr: 1e-2, eps: 0.1}"
    chosen = (f"gan.adversarial={adversarial}", "discriminator={kind: tiny}", smooth)
    lr, hr = batch()
    whole, parted = state_of(*chosen), state_of(*chosen)
    assert whole.discriminator
    assert parted.discriminator
    first = gan_step(whole).run([MicroBatch(lr, hr)], 0)
    second = gan_step(parted).run([MicroBatch(lr[i : i + 1], hr[i : i + 1], share=1 / 4) for i in range(4)], 0)
    for name in first.keys() - {"d_accuracy_real", "d_accuracy_fake"}:  # Wasserstein's depend on the part's mean
        assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-4, abs=1e-7), name
    for one, other in ((whole.generator, parted.generator), (whole.discriminator, parted.discriminator)):
        size = max(
            float(parameter.grad.abs().max()) for parameter in one.parameters() if parameter.grad is not None
        )
        for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, atol=1e-3 * size, rtol=1e-3, msg=name)


def test_a_step_that_is_not_finite_leaves_weights_and_statistics_alone() -> None:
    state = state_of("generator={kind: srresnet, blocks: 1, channels: 8}")
    step = gan_step(state)
    assert state.discriminator
    lr, hr = batch()
    step.run([MicroBatch(lr, hr)], 0)
    before = {name: value.clone() for m in (state.generator, state.discriminator) for name, value in floats(m)}
    step.run([MicroBatch(lr * math.nan, hr)], 1)
    assert float(state.generator_optimizer.bad) == 1 if state.generator_optimizer else False
    for module in (state.generator, state.discriminator):
        for name, value in floats(module):
            assert torch.equal(value, before[name]), name
    step.run([MicroBatch(lr, hr)], 2)
    assert any(not torch.equal(value, before[name]) for name, value in floats(state.generator))


def floats(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = module.state_dict().items()
    return [(f"{type(module).__name__}.{name}", value) for name, value in named if value.is_floating_point()]


def test_a_discriminator_that_is_far_ahead_pauses() -> None:
    state = state_of("gan.adversarial={kind: bce, pause_above: 0.9}", "gan.discriminator_optimizer={lr: 1e-3}")
    assert state.discriminator
    step, (lr, hr) = gan_step(state), batch()
    paused = []
    for number in range(40):
        before = snapshot(state.discriminator)
        losses = step.run([MicroBatch(lr, hr)], number)
        paused.append(float(losses["d_accuracy_real"] + losses["d_accuracy_fake"]) / 2 > 0.9)
        assert float(losses["d_paused"]) == paused[-1]
        assert moved(before, state.discriminator) != paused[-1]
    assert not paused[0]
    assert any(paused)
    assert float(step.discriminator_optimizer.bad) == 0


def test_stages_follow_each_other_and_the_gan_starts_from_the_averaged_generator() -> None:
    state = state_of("pretrain.steps=2", "gan.steps=1", stage="pretrain")
    assert state.stage == "pretrain"
    assert not state.advance()
    assert state.advance()
    assert (state.stage, state.step_of_stage, state.done) == ("gan", 0, False)
    assert state.discriminator_optimizer is not None
    assert state.pretrained is not None
    for name, value in state.generator.state_dict().items():
        torch.testing.assert_close(value, state.pretrained[name])
    state.advance()
    assert state.done


def test_seeds_of_steps_and_ranks_differ() -> None:
    seeds = {step_seed(seed, rank, step) for seed in range(5) for rank in range(8) for step in range(200)}
    assert len(seeds) == 5 * 8 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_recipe_reads_back_from_its_dump() -> None:
    recipe = parse_recipe(RECIPE)
    assert Recipe.model_validate(recipe.dump()) == recipe
