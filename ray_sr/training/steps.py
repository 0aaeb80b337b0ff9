"""One training step of each stage, in pure torch: batches in, losses out, weights moved."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_sr.losses import AdversarialLoss, ContentLoss
from ray_sr.recipe import AdversarialSpec
from ray_sr.training.compute import Compute
from ray_sr.training.optimizer import GuardedOptimizer

Losses = dict[str, Tensor]


class PretrainStep:
    """The generator alone, by content losses."""

    def __init__(
        self,
        generator: nn.Module,
        optimizer: GuardedOptimizer,
        losses: Sequence[ContentLoss],
        compute: Compute,
    ) -> None:
        self.generator, self.optimizer = generator, optimizer
        self.losses, self.compute = losses, compute

    @property
    def optimizers(self) -> list[GuardedOptimizer]:
        return [self.optimizer]

    def run(self, lr: Tensor, hr: Tensor, number: int, noise: torch.Generator) -> Losses:
        """LR and HR float32 N×3×h×w in [0, 1]; `number` counts the steps of the stage from 0."""
        self.optimizer.zero_grad()
        with self.compute.autocast():
            sr = self.generator(lr)
            terms = content_terms(self.losses, sr, hr)
        total = weighted_sum(self.losses, terms)
        total.backward()
        self.optimizer.step(number)
        return _detached({"g_total": total, **_named(self.losses, terms)})


@dataclass(frozen=True)
class Judgement:
    """The generated photos, cut off from the generator's graph, and what the discriminator says of them.

    `fake` has a graph to the discriminator's weights and to `photos`. `real` has none, and is None where the
    adversarial loss looks at one side alone.
    """

    photos: Tensor
    fake: Tensor
    real: Tensor | None


class GanStep:
    """Generator against discriminator. Works with bare modules and with DDP around both.

    The generator's loss and the first update of the discriminator see the same photos by the same weights:
    they share one forward pass. The discriminator's losses of fake and real photos are backpropagated apart,
    the first without synchronisation: one all-reduce, and no BatchNorm buffer changes under a graph that is
    still needed.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: GuardedOptimizer,
        discriminator_optimizer: GuardedOptimizer,
        losses: Sequence[ContentLoss],
        adversarial: AdversarialSpec,
        compute: Compute,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.losses, self.spec, self.compute = losses, adversarial, compute
        self.adversarial = AdversarialLoss(adversarial)

    @property
    def optimizers(self) -> list[GuardedOptimizer]:
        return [self.generator_optimizer, self.discriminator_optimizer]

    def run(self, lr: Tensor, hr: Tensor, number: int, noise: torch.Generator) -> Losses:
        """One generator update, then `critic_updates` of the discriminator on the same photos."""
        judgement, losses = self._update_generator(lr, hr, number)
        for update in range(self.spec.critic_updates):
            if update:
                judgement = self._judge(judgement.photos, hr)
            losses.update(self._update_discriminator(hr, judgement, number, noise))
        return _detached(losses)

    def _update_generator(self, lr: Tensor, hr: Tensor, number: int) -> tuple[Judgement, Losses]:
        self.generator_optimizer.zero_grad()
        with self.compute.autocast():
            sr = self.generator(lr)
            terms = content_terms(self.losses, sr, hr)
        judgement = self._judge(sr, hr)
        adversarial = self.adversarial.generator_loss(judgement.fake, judgement.real)
        weighted = self.spec.weight * adversarial
        # The discriminator's graph is kept for its own update, the generator's is not.
        (pull,) = torch.autograd.grad(weighted, judgement.photos, retain_graph=True)
        content = weighted_sum(self.losses, terms)
        (content + (sr * pull).sum()).backward()
        self.generator_optimizer.step(number)
        losses = {"g_total": content + weighted, "g_adversarial": adversarial, **_named(self.losses, terms)}
        return judgement, losses

    def _judge(self, sr: Tensor, hr: Tensor) -> Judgement:
        critic, photos = bare(self.discriminator), sr.detach().requires_grad_()
        with self.compute.autocast():
            real = self._without_graph(critic, hr) if self.adversarial.needs_both else None
            return Judgement(photos, critic(photos), real)

    def _update_discriminator(
        self, hr: Tensor, judgement: Judgement, number: int, noise: torch.Generator
    ) -> Losses:
        critic, loss = self.discriminator, self.adversarial
        self.discriminator_optimizer.zero_grad()
        losses: Losses = {}
        with no_sync(critic):
            fake = loss.fake_loss(judgement.fake, judgement.real, noise)
            fake.backward(inputs=list(bare(critic).parameters()))
            if self.spec.gradient_penalty:
                penalty = loss.gradient_penalty(bare(critic), hr, judgement.photos, noise)
                (self.spec.gradient_penalty * penalty).backward()
                losses["d_penalty"] = penalty
        fake_logits = judgement.fake.detach()
        with self.compute.autocast():
            real_logits = critic(hr)
            real = loss.real_loss(real_logits, fake_logits if loss.needs_both else None, noise)
        real.backward()
        self.discriminator_optimizer.step(number)
        if self.spec.weight_clip is not None:
            loss.clip_weights(bare(critic))
        seen_real, seen_fake = loss.accuracy(real_logits.detach(), fake_logits)
        return {
            **losses,
            "d_loss": real + fake,
            "d_accuracy_real": seen_real,
            "d_accuracy_fake": seen_fake,
        }

    @staticmethod
    def _without_graph(module: nn.Module, photos: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(photos)
        return logits


def content_terms(losses: Sequence[ContentLoss], sr: Tensor, hr: Tensor) -> list[Tensor]:
    return [loss(sr, hr) for loss in losses]


def weighted_sum(losses: Sequence[ContentLoss], terms: Sequence[Tensor]) -> Tensor:
    total = torch.zeros(())
    for loss, term in zip(losses, terms, strict=True):
        total = total.to(term.device) + loss.weight * term
    return total


def bare(module: nn.Module) -> nn.Module:
    """The module inside DDP, or the module itself."""
    inner = getattr(module, "module", module)
    assert isinstance(inner, nn.Module)
    return inner


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """DDP's context without gradient synchronisation; nothing for bare modules."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def _named(losses: Sequence[ContentLoss], terms: Sequence[Tensor]) -> Losses:
    return {f"g_{loss.name}": term for loss, term in zip(losses, terms, strict=True)}


def _detached(losses: Losses) -> Losses:
    return {name: value.detach().float() for name, value in losses.items()}
