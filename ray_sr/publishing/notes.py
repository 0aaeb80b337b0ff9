"""What a run's records say, in words: the headline of its report and the notes below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from ray_sr.recipes.losses import AdversarialSpec, PerceptualLossSpec
from ray_sr.recipes.recipe import Recipe

Record = dict[str, Any]

# Loss of a discriminator that gives the same answer to real and generated photos, the best it can do where
# both look alike: (real loss + fake loss) as `losses.AdversarialLoss` defines them.
EQUILIBRIUM = {"bce": math.log(2), "relativistic": math.log(2), "lsgan": 0.25, "hinge": 2.0, "wasserstein": 0.0}
_DOMINANT, _UNDECIDED = 0.95, (0.4, 0.6)
_RECENT = 0.25  # share of the last discriminator records that notes are taken from
_SHORT = 20_000
_IDLE = 0.15


def equilibrium_label(spec: AdversarialSpec) -> str:
    """Words for the line in the discriminator's chart."""
    value = EQUILIBRIUM[spec.kind]
    name = f"{value:.3f} = ln 2" if spec.kind in ("bce", "relativistic") else f"{value:g}"
    return f"{name}: real and generated look alike"


def baseline_name(recipe: Recipe) -> str:
    return "bicubic" if recipe.scale > 1 else "the input"


def headline(recipe: Recipe, validations: Sequence[Record]) -> str:
    """One or two sentences: where the run stands in PSNR against the baseline."""
    if not validations:
        return "Nothing has been measured on held-out photos yet."
    last = validations[-1]
    base, bicubic = baseline_name(recipe), last["bicubic_psnr_y"]
    measured = f"PSNR-Y on the held-out photos is {_decibels(last['psnr_y'])} dB after {last['step']:,} steps"
    sentence = f"{measured}, {_against(last['psnr_y'] - bicubic, base)} ({_decibels(bicubic)} dB)."
    before = [record for record in validations if record.get("stage") == "pretrain"]
    if last.get("stage") != "gan" or not before:
        return sentence
    gain = before[-1]["psnr_y"] - before[-1]["bicubic_psnr_y"]
    return f"{sentence} Pre-training ended at {_decibels(before[-1]['psnr_y'])} dB, {_against(gain, base)}."


def _against(gain: float, base: str) -> str:
    if abs(gain) < 0.005:
        return f"equal to {base}"
    return f"{abs(gain):.2f} dB {'above' if gain > 0 else 'below'} {base}"


def _decibels(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "infinite"


def notes(
    recipe: Recipe, steps: Sequence[Record], validations: Sequence[Record], starts: Sequence[Record]
) -> list[str]:
    """What a reader should know before judging the numbers and curves, most important first."""
    return [
        *_about_quality(recipe, validations),
        *_about_discriminator(recipe, steps),
        *_about_features(recipe),
        *_about_course(recipe, steps, starts),
    ]


def _about_quality(recipe: Recipe, validations: Sequence[Record]) -> Iterator[str]:
    if not validations:
        why = (
            "the recipe asks for none"
            if recipe.validation.photos == 0
            else "none has been due, or there are no photos"
        )
        yield f"No validation yet ({why}), so nothing here tells how good the generator is."
        return
    last = validations[-1]
    before = [record for record in validations if record.get("stage") == "pretrain"]
    if last.get("stage") == "gan" and before and last["psnr_y"] < before[-1]["psnr_y"]:
        yield (
            f"The GAN stage lowered PSNR by {before[-1]['psnr_y'] - last['psnr_y']:.2f} dB. That is its nature: it "
            "trades agreement pixel by pixel for texture that looks real. Judge it by the pictures."
        )
    elif last["psnr_y"] < last["bicubic_psnr_y"]:
        yield f"PSNR is still below {baseline_name(recipe)}: the generator needs more steps."


def _about_discriminator(recipe: Recipe, steps: Sequence[Record]) -> Iterator[str]:
    games = [record for record in steps if math.isfinite(record.get("d_accuracy_real", math.nan))]
    if not games or recipe.gan is None or recipe.gan.adversarial.kind == "wasserstein":
        return  # a Wasserstein critic is meant to win
    recent = games[-max(1, round(_RECENT * len(games))) :]
    real = fmean(record["d_accuracy_real"] for record in recent)
    fake = fmean(record["d_accuracy_fake"] for record in recent)
    seen = f"it recognised {real:.0%} of the real and {fake:.0%} of the generated crops lately"
    low, high = _UNDECIDED
    if min(real, fake) > _DOMINANT:
        yield (
            f"The discriminator dominates: {seen}. The generator learns little from a judge it cannot deceive; "
            "pre-train longer, or lower gan.discriminator_optimizer.lr."
        )
    elif low <= real <= high and low <= fake <= high:
        yield (
            f"The discriminator is undecided: {seen}, about as much as by guessing. Either the generated photos "
            "look real to it, or it has not learnt to tell them apart yet."
        )
    elif real > _DOMINANT or fake > _DOMINANT:
        side = "real" if real > fake else "generated"
        yield f"The discriminator leans to one answer: {seen}, so it calls most crops {side}."
    else:
        yield f"The discriminator and the generator are in balance: {seen}."


def _about_features(recipe: Recipe) -> Iterator[str]:
    losses = [loss for stage in (recipe.pretrain, recipe.gan) if stage for loss in stage.losses]
    if any(isinstance(loss, PerceptualLossSpec) and loss.network == "random" for loss in losses):
        yield (
            "The perceptual loss compares features of an untrained network (network: random), which the recipe "
            "asks for. It works without VGG weights but knows nothing of photographs: expect less than from VGG19."
        )


def _about_course(recipe: Recipe, steps: Sequence[Record], starts: Sequence[Record]) -> Iterator[str]:
    if resumed := [f"{record['step']:,}" for record in starts if record["step"] > 0]:
        yield f"The run was resumed at step {', '.join(resumed)}."
    if bad := max((record.get("bad_steps", 0) for record in steps), default=0):
        yield f"{bad:.0f} steps had a gradient that was not finite and changed nothing."
    waits = [record["data_wait"] for record in steps if "data_wait" in record]
    if waits and fmean(waits) > _IDLE:
        yield f"The workers waited for data {fmean(waits):.0%} of the time: more CPUs for Ray Data would help."
    if recipe.total_steps < _SHORT:
        yield (
            f"This is a short run of {recipe.total_steps:,} steps. Published generators take 100,000 to 1,000,000; "
            "expect a first impression, not the best that the networks can do."
        )
