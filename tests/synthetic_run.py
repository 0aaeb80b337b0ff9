"""A run folder with made-up but lifelike records, for tests of what reads one."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_sr.recipes.reader import parse_recipe, recipe_yaml
from ray_sr.training.runs import Run

PRETRAIN, GAN, EVERY = 400, 200, 5
BICUBIC = {"bicubic_psnr_y": 26.42, "bicubic_psnr_rgb": 25.01}
RECIPE = f"""
name: srgan-demo
description: A small SRGAN on a handful of photographs, to see every part of a run.
scale: 4
data: {{crop: 64, batch: 8}}
generator: {{kind: srresnet, blocks: 4, channels: 32}}
discriminator: {{kind: srgan, channels: 16}}
pretrain: {{steps: {PRETRAIN}, losses: [{{kind: l1}}]}}
gan:
  steps: {GAN}
  losses: [{{kind: perceptual, network: random, layers: {{conv3_4: 1.0}}}}, {{kind: l1, weight: 0.01}}]
training: {{log_every: {EVERY}}}
"""


def synthetic_run(folder: Path, *, until: int = PRETRAIN + GAN, recipe: str = RECIPE, **changed: float) -> Run:
    """A run that has reached step `until`; `changed` replaces values of the GAN stage's records."""
    run = Run.at(folder)
    run.samples.mkdir(parents=True)
    run.recipe_file.write_text(recipe_yaml(parse_recipe(recipe)), encoding="utf-8")
    facts = {"ray_sr": "0.1.0", "ray": "2.60.0", "torch": "2.15.0", "python": "3.12.1", "cpus": 2.0, "gpus": 0}
    facts |= {"nodes": 1, "began": "2026-01-02T03:04:05+00:00", "shards": "demo/shards", "data_digest": "5eed"}
    run.facts_file.write_text(json.dumps(facts), encoding="utf-8")
    rng = np.random.default_rng(3)
    records: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "world": 1, "compute": "CPU, float32", "sub_images": 42, "cached": True}
    ]
    for step in range(EVERY, until + 1, EVERY):
        records.append(_train(step, rng, changed))
        if step % 50 == 0:
            records.append(_validation(step, rng))
            (run.samples / f"{step:08d}.png").write_bytes(_sample(step, rng))
    run.journal.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return run


def _train(step: int, rng: np.random.Generator, changed: dict[str, float]) -> dict[str, Any]:
    gan = step > PRETRAIN
    l1 = 0.028 + 0.2 * math.exp(-step / 30) + 0.003 * rng.standard_normal() + (0.006 if gan else 0)
    record: dict[str, Any] = {"event": "train", "step": step, "stage": "gan" if gan else "pretrain"}
    record |= {"lr": 1e-4 if gan else 4e-4, "bad_steps": 0.0, "g_l1": l1, "g_total": l1}
    record |= {"steps_per_s": 1.4 if gan else 3.2, "data_wait": 0.04 + 0.01 * rng.random()}
    if not gan:
        return record
    along = (step - PRETRAIN) / GAN
    perceptual = 0.5 - 0.1 * along + 0.02 * rng.standard_normal()
    adversarial = 0.8 + 0.6 * along + 0.2 * rng.standard_normal()
    record |= {"g_perceptual_random": perceptual, "g_adversarial": adversarial}
    record["g_total"] = perceptual + 0.01 * l1 + 1e-3 * adversarial
    record["d_loss"] = 0.69 + 0.3 * math.exp(-along * 20) - 0.2 * along + 0.05 * rng.standard_normal()
    record["d_accuracy_real"] = min(1.0, 0.55 + 0.2 * along + 0.05 * rng.standard_normal())
    record["d_accuracy_fake"] = min(1.0, 0.5 + 0.25 * along + 0.05 * rng.standard_normal())
    return record | changed


def _validation(step: int, rng: np.random.Generator) -> dict[str, Any]:
    gan = step > PRETRAIN
    psnr = 27.6 - 4.5 * math.exp(-step / 90) - (0.45 if gan else 0) + 0.03 * rng.standard_normal()
    found = {"psnr_y": psnr, "psnr_rgb": psnr - 1.4, **BICUBIC}
    return {"event": "validation", "step": step, "stage": "gan" if gan else "pretrain", **found}


def _sample(step: int, rng: np.random.Generator) -> bytes:
    """Input, output and original side by side: the output becomes sharper as the run goes on."""
    original = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    low = original.reshape(6, 40, 6, 40, 3).mean((1, 3)).astype(np.uint8).repeat(40, 0).repeat(40, 1)
    share = step / (PRETRAIN + GAN)
    output = (share * original + (1 - share) * low).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([low, output, original], axis=1)).save(buffer, "PNG")
    return buffer.getvalue()
