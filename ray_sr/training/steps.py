"""One training step of each stage, in pure torch: batches in, losses out, weights moved.

A batch may come in micro-batches, one after another: gradients add up over them and the workers exchange them once.

Nothing here waits for the device: losses stay tensors, and a step that is not finite is undone by arithmetic, not
by an `if`. So the CPU launches the next step while a GPU computes this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, distributed, nn

from ray_sr.losses import AdversarialLoss, ContentLoss, build_content_losses, feature_distance
from ray_sr.models.discriminators import FeatureTaps
from ray_sr.recipes.losses import AdversarialSpec
from ray_sr.recipes.training import PretrainSpec
from ray_sr.training.compute import Compute
from ray_sr.training.optimizer import BufferGuard, GuardedOptimizer
from ray_sr.training.state import TrainState

Losses = dict[str, Tensor]


class MicroBatch:
    """LR and HR float32 N×3×h×w in [0, 1] that a worker computes at once.

    Dropout and label noise follow from `seed`, whichever worker has the micro-batch. `share` is the
    number of workers over that of all micro-batches of the step, because workers exchange the mean of their
    gradients.
    """

    def __init__(self, lr: Tensor, hr: Tensor, seed: int = 0, share: float = 1.0) -> None:
        self.lr, self.hr, self.seed, self.share = lr, hr, seed, share
        self.noise = torch.Generator().manual_seed(seed)


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
        self.guard = BufferGuard([generator])

    @property
    def optimizers(self) -> list[GuardedOptimizer]:
        return [self.optimizer]

    def run(self, micros: Sequence[MicroBatch], number: int) -> Losses:
        """One update; `number` counts the steps of the stage from 0."""
        self.guard.remember()
        self.optimizer.zero_grad()
        means = Means()
        for micro, exchange in sync_on_last(micros, self.generator):
            with exchange:
                torch.manual_seed(micro.seed)  # of dropout: the same draws whichever worker has this part
                with self.compute.autocast():
                    sr = self.generator(micro.lr)
                    terms = content_terms(self.losses, sr, micro.hr, micro.lr)
                total = weighted_sum(self.losses, terms, sr.device)
                (micro.share * total).backward()
            means.add({"g_total": total, **_named(self.losses, terms)})
        self.optimizer.step(number)
        self.guard.restore_where(self.optimizer.not_finite)
        return means.read()


@dataclass(frozen=True)
class DiscriminatorOutput:
    """The generated photos, cut off from the generator's graph, and what the discriminator says of them.

    `fake` has a graph to the discriminator's weights and to `photos`. `real` has none, and is None where the
    adversarial loss looks at one side alone.
    """

    photos: Tensor
    fake: Tensor
    real: Tensor | None

    def without_graph(self) -> DiscriminatorOutput:
        """The photos with what was said of them, for a later output of the same photos."""
        return DiscriminatorOutput(self.photos.detach(), self.fake.detach(), self.real)


class GanStep:
    """Generator against discriminator. Works with bare modules and with DDP around both.

    The generator's loss and the first update of the discriminator see the same photos by the same weights:
    they share one forward pass. The discriminator's losses of fake and real photos are backpropagated apart,
    the first without synchronisation: one all-reduce, and no BatchNorm buffer changes under a graph that is
    still needed. Of several micro-batches only the photos are kept between the two updates, which saves the
    memory that they are for.
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
        self.taps = FeatureTaps(bare(discriminator)) if adversarial.feature_matching else None
        self.guard = BufferGuard([generator, discriminator])

    @property
    def optimizers(self) -> list[GuardedOptimizer]:
        return [self.generator_optimizer, self.discriminator_optimizer]

    def run(self, micros: Sequence[MicroBatch], number: int) -> Losses:
        """One generator update, then `critic_updates` of the discriminator on the same photos."""
        self.guard.remember()
        outputs, means = self._update_generator(micros, number)
        losses = means.read()
        for update in range(self.spec.critic_updates):
            judged: Iterable[DiscriminatorOutput] = outputs
            if update or len(micros) > 1:
                judged = (self._judge(old.photos, micro.hr) for old, micro in zip(outputs, micros, strict=True))
            losses.update(self._update_discriminator(micros, judged, number))
        self.guard.restore_where(self.generator_optimizer.not_finite + self.discriminator_optimizer.not_finite)
        return losses

    def _update_generator(
        self, micros: Sequence[MicroBatch], number: int
    ) -> tuple[list[DiscriminatorOutput], Means]:
        self.generator_optimizer.zero_grad()
        outputs, means = [], Means()
        for micro, exchange in sync_on_last(micros, self.generator):
            with exchange:
                torch.manual_seed(micro.seed)
                output, losses = self._pull_generator(micro)
            outputs.append(output if len(micros) == 1 else output.without_graph())
            means.add(losses)
        self.generator_optimizer.step(number)
        return outputs, means

    def _pull_generator(self, micro: MicroBatch) -> tuple[DiscriminatorOutput, Losses]:
        """Add the gradients of a micro-batch to the generator's."""
        with self.compute.autocast():
            sr = self.generator(micro.lr)
            terms = content_terms(self.losses, sr, micro.hr, micro.lr)
        output, matching = self._judge_and_match(sr, micro.hr)
        adversarial = self.adversarial.generator_loss(output.fake, output.real)
        weighted = self.spec.weight * adversarial
        if matching is not None:
            weighted = weighted + self.spec.feature_matching * matching
        # Only down to the photos: a backward pass through the discriminator would also fill its .grad, and set off
        # the exchange of its DDP. Its graph is kept for its own update; the generator's is used up here.
        (pull,) = torch.autograd.grad(weighted, output.photos, retain_graph=True)
        content = weighted_sum(self.losses, terms, sr.device)
        # The gradient of sum(sr * pull) is the chain rule's other half, so one backward pass serves all terms.
        (micro.share * (content + (sr * pull).sum())).backward()
        losses = {"g_total": content + weighted, "g_adversarial": adversarial, **_named(self.losses, terms)}
        if matching is not None:
            losses["g_feature_matching"] = matching
        return output, losses

    def _judge_and_match(self, sr: Tensor, hr: Tensor) -> tuple[DiscriminatorOutput, Tensor | None]:
        """Also how far the discriminator's features of SR are from those of HR, where the recipe asks for it."""
        if self.taps is None:
            return self._judge(sr, hr), None
        with self.taps.recorded() as features:
            output = self._judge(sr, hr, with_real=True)
        half = len(features) // 2
        return output, feature_distance(features[half:], features[:half])

    def _judge(self, sr: Tensor, hr: Tensor, with_real: bool = False) -> DiscriminatorOutput:
        # Without DDP, which expects one backward pass after each forward pass; here some have two, some none.
        critic, photos = bare(self.discriminator), sr.detach().requires_grad_()
        with self.compute.autocast():
            real = self._without_graph(critic, hr) if self.adversarial.needs_both or with_real else None
            return DiscriminatorOutput(photos, critic(photos), real)

    def _update_discriminator(
        self, micros: Sequence[MicroBatch], outputs: Iterable[DiscriminatorOutput], number: int
    ) -> Losses:
        self.discriminator_optimizer.zero_grad()
        means = Means()
        for (micro, exchange), output in zip(sync_on_last(micros, self.discriminator), outputs, strict=True):
            means.add(self._pull_discriminator(micro, output, exchange))
        losses = means.read()
        self.discriminator_optimizer.step(number, skip=self._is_to_pause(losses))
        if self.spec.weight_clip is not None:
            self.adversarial.clip_weights(bare(self.discriminator))
        return losses

    def _pull_discriminator(
        self, micro: MicroBatch, output: DiscriminatorOutput, exchange: AbstractContextManager[None]
    ) -> Losses:
        """Add the gradients of a micro-batch to the discriminator's."""
        critic, loss = self.discriminator, self.adversarial
        losses: Losses = {}
        with no_sync(critic):
            fake = loss.fake_loss(output.fake, output.real, micro.noise)
            (micro.share * fake).backward(inputs=list(bare(critic).parameters()))
            if self.spec.gradient_penalty:
                penalty = loss.gradient_penalty(bare(critic), micro.hr, output.photos, micro.noise)
                (micro.share * self.spec.gradient_penalty * penalty).backward()
                losses["d_penalty"] = penalty
        fake_logits = output.fake.detach()
        with exchange:
            with self.compute.autocast():
                real_logits = critic(micro.hr)
                real = loss.real_loss(real_logits, fake_logits if loss.needs_both else None, micro.noise)
            (micro.share * real).backward()
        seen_real, seen_fake = loss.accuracy(real_logits.detach(), fake_logits)
        return {**losses, "d_loss": real + fake, "d_accuracy_real": seen_real, "d_accuracy_fake": seen_fake}

    def _is_to_pause(self, losses: Losses) -> Tensor | None:
        """1 where the discriminator is too far ahead to be taught now; the same on all workers."""
        if self.spec.pause_above is None:
            return None
        seen = (losses["d_accuracy_real"] + losses["d_accuracy_fake"]) / 2
        if isinstance(self.discriminator, nn.parallel.DistributedDataParallel):
            # By the mean of all workers: were each to go by its own crops, their weights would drift apart.
            distributed.all_reduce(seen)
            seen = seen / distributed.get_world_size()
        paused = (seen > self.spec.pause_above).float()
        losses["d_paused"] = paused
        return paused

    @staticmethod
    def _without_graph(module: nn.Module, photos: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(photos)
        return logits


def build_step(
    state: TrainState,
    teachers: Mapping[str, nn.Module] = MappingProxyType({}),
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> PretrainStep | GanStep:
    """The step of the stage that `state` is in, with the losses of its recipe.

    `teachers` are the models that distillation names; `wrap` puts DDP, or whatever is wanted, around each network.
    Raises the errors of `losses.build_content_losses`.
    """
    recipe, compute = state.recipe, state.compute
    stage = recipe.pretrain if state.stage == "pretrain" else recipe.gan
    assert stage
    assert state.generator_optimizer
    at = compute.device, compute.memory_format, compute.autocast_dtype
    losses = build_content_losses(stage.losses, recipe.features, *at, teachers, state.ema)
    compute.with_exact_end(state.generator)
    generator = wrap(state.generator)
    if isinstance(stage, PretrainSpec):
        return PretrainStep(generator, state.generator_optimizer, losses, compute)
    assert state.discriminator
    assert state.discriminator_optimizer
    return GanStep(
        generator,
        wrap(state.discriminator),
        state.generator_optimizer,
        state.discriminator_optimizer,
        losses,
        stage.adversarial,
        compute,
    )


class Means:
    """Means of losses over the micro-batches of a batch, detached and left on their device."""

    def __init__(self) -> None:
        self._sums: Losses = {}
        self._parts = 0

    def add(self, losses: Losses) -> None:
        for name, value in losses.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._parts += 1

    def read(self) -> Losses:
        return {name: value / self._parts for name, value in self._sums.items()}


def content_terms(losses: Sequence[ContentLoss], sr: Tensor, hr: Tensor, lr: Tensor) -> list[Tensor]:
    return [loss(sr, hr, lr) for loss in losses]


def weighted_sum(losses: Sequence[ContentLoss], terms: Sequence[Tensor], device: torch.device) -> Tensor:
    """The terms with their weights, 0 without any; made on `device`, for which nothing waits there."""
    total = torch.zeros((), device=device)
    for loss, term in zip(losses, terms, strict=True):
        total = total + loss.weight * term
    return total


def bare(module: nn.Module) -> nn.Module:
    """The module inside DDP, or the module itself."""
    inner = getattr(module, "module", module)
    assert isinstance(inner, nn.Module)
    return inner


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """DDP's context without gradient synchronisation; nothing for bare modules."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def sync_on_last(
    micros: Sequence[MicroBatch], module: nn.Module
) -> Iterator[tuple[MicroBatch, AbstractContextManager[None]]]:
    """Each micro-batch with the context to compute it in: workers exchange gradients in the last one alone.

    DDP exchanges in every backward pass unless told not to; .grad adds up either way, so once is enough.
    """
    for micro in micros:
        yield micro, nullcontext() if micro is micros[-1] else no_sync(module)


def _named(losses: Sequence[ContentLoss], terms: Sequence[Tensor]) -> Losses:
    return {f"g_{loss.name}": term for loss, term in zip(losses, terms, strict=True)}
