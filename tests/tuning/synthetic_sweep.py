"""A sweep's folder with made-up journals, for tests of what reads one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_sr.recipes.reader import parse_recipe, recipe_yaml
from ray_sr.tuning.folder import Status, SweepCard, SweepFolder, TrialCard
from ray_sr.tuning.space import parse_space
from ray_sr.tuning.trial_recipe import trial_recipe

RECIPE = parse_recipe("""
name: small
scale: 2
data: {crop: 32, batch: 4}
generator: {kind: srresnet, blocks: 2, channels: 8}
pretrain: {steps: 100, losses: [{kind: l1}], optimizer: {lr: 1e-3}}
validation: {every: 20}
""")
FIELDS = """
fields:
  pretrain.optimizer.lr: {loguniform: [1e-4, 1e-2]}
  generator.blocks: {choice: [1, 2, 4]}
"""


def synthetic_sweep(folder: Path, space: str = FIELDS) -> SweepFolder:
    sweep = SweepFolder.at(folder)
    sweep.begin(SweepCard(space=parse_space(space).dump(), shards=str(folder / "shards")), RECIPE)
    return sweep


def add_trial(
    sweep: SweepFolder,
    number: int,
    course: Sequence[float],
    *,
    status: Status = "done",
    speed: float = 2.0,
    reason: str | None = None,
    **values: Any,
) -> None:
    """A trial that validated every 20 steps with these PSNRs; `lr` and `blocks` are its values."""
    chosen = {"pretrain.optimizer.lr": values.get("lr", 1e-3), "generator.blocks": values.get("blocks", 2)}
    trial = sweep.trial(number)
    trial.write(TrialCard(number=number, values=chosen, status=status, reason=reason))
    trial.run.recipe_file.write_text(recipe_yaml(trial_recipe(RECIPE, chosen)), encoding="utf-8")
    records: list[dict[str, Any]] = [{"event": "start", "step": 0, "world": 1}]
    for index, psnr in enumerate(course, 1):
        step = 20 * index
        records.append({"event": "train", "step": step, "stage": "pretrain", "steps_per_s": speed})
        found = {
            "psnr_y": float(psnr),
            "psnr_rgb": float(psnr) - 1,
            "bicubic_psnr_y": 25.5,
            "bicubic_psnr_rgb": 24.5,
        }
        records.append({"event": "validation", "step": step, "stage": "pretrain", **found})
    trial.run.journal.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
