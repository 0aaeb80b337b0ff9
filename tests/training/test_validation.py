"""Held-out photos that have no finite PSNR: flat ones, and ones that are too small; also in older journals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs as pafs

from ray_sr.data.manifest import Cutting, Manifest, write_manifest
from ray_sr.data.shards import Group, write_shard
from ray_sr.data.sources import find_photos
from ray_sr.degradations import degrade
from ray_sr.models import build_generator
from ray_sr.publishing.publish import publish_run
from ray_sr.publishing.report import write_report
from ray_sr.recipes.reader import parse_recipe
from ray_sr.store import Store
from ray_sr.training import validation
from ray_sr.training.compute import Compute
from ray_sr.training.runs import Run
from ray_sr.training.state import TrainState
from ray_sr.training.validation import Validator
from ray_sr.tuning.results import read_results
from tests.photos import noise
from tests.synthetic_run import RECIPE, synthetic_run
from tests.tuning.synthetic_sweep import add_trial, synthetic_sweep

CPU = Compute(torch.device("cpu"), None, torch.contiguous_format)


def held_out(folder: Path, *photos: np.ndarray) -> str:
    """Shards of held-out photos alone."""
    (folder / "photos").mkdir()
    for number, pixels in enumerate(photos):
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    found = find_photos([str(folder / "photos")])
    cutting = Cutting(sub_image=16, step=16, minimum=8)
    output = str(folder / "shards")
    Path(output).mkdir()
    group = Group("validation-00000-000000000000.parquet", "validation", tuple(found))
    shard, records = write_shard(group, output, cutting)
    manifest = Manifest(cutting=cutting, photos={"train": 0, "validation": len(found)}, left_out=0, shards=[shard])
    write_manifest(pafs.LocalFileSystem(), output, manifest, records)
    return output


def validator(shards: str, scale: int, rank: int = 0, world: int = 1) -> Validator:
    text = f"{{name: t, scale: {scale}, data: {{crop: 48}}, generator: {{kind: srresnet, blocks: 1, channels: 4}}, "
    return Validator(parse_recipe(text + "pretrain: {steps: 1}}"), CPU, shards, rank, world)


def test_an_exact_result_counts_as_a_hundred_decibels(tmp_path: Path) -> None:
    """Bicubic is exact on a white photo."""
    white = np.full((64, 64, 3), 255, np.uint8)
    found = validator(held_out(tmp_path, white, noise(64, 64)), 4)
    assert found.bicubic[0] == (100.0, 100.0)
    assert 0 < found.bicubic[1][0] < 30
    metrics, _ = found.run(build_generator(found.recipe.network).eval())
    assert all(math.isfinite(value) for value in metrics.values())
    mean = (100.0 + found.bicubic[1][0]) / 2
    assert metrics["bicubic_psnr_y"] == pytest.approx(mean)


@pytest.mark.parametrize(("scale", "side", "large"), [(8, 17, False), (8, 24, True), (4, 11, False), (4, 12, True),
                                                     (2, 8, True)])  # fmt: skip
def test_photos_that_the_border_takes_whole_are_not_measured(
    scale: int, side: int, large: bool, tmp_path: Path
) -> None:
    shards = held_out(tmp_path, noise(side, 40), noise(64, 64))
    found = validator(shards, scale)
    assert (found.photos_in_all, found.too_small) == ((2, 0) if large else (1, 1))
    metrics, _ = found.run(build_generator(found.recipe.network).eval())
    assert all(math.isfinite(value) for value in metrics.values())
    ranks = [validator(shards, scale, rank, 2) for rank in range(2)]
    assert {rank.photos_in_all for rank in ranks} == {found.photos_in_all}
    assert sum(len(rank.pairs) for rank in ranks) == found.photos_in_all


def test_a_worker_degrades_the_photos_that_it_measures_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = held_out(tmp_path, *(noise(32, 32 + 4 * number) for number in range(5)))
    widths: list[int] = []

    def recorded(batch: np.ndarray, *arguments: Any) -> np.ndarray:
        widths.append(batch.shape[2])
        return degrade(batch, *arguments)

    monkeypatch.setattr(validation, "degrade", recorded)
    text = "{name: t, scale: 4, data: {crop: 32}, generator: {kind: srresnet, blocks: 1, channels: 4}, "
    recipe = parse_recipe(text + "degradation: [{kind: second_order}], pretrain: {steps: 1}}")
    for rank, mine in ((0, [32, 40, 48]), (1, [36, 44])):
        widths.clear()
        assert len(Validator(recipe, CPU, shards, rank, 2).pairs) == len(mine)
        assert widths == mine


def spoil(run: Run, value: float, every: bool = True) -> None:
    """Validations as earlier versions wrote them."""
    lines = [json.loads(line) for line in run.journal.read_text().splitlines()]
    spoilt = [line for line in lines if line["event"] == "validation"]
    for line in spoilt if every else spoilt[-1:]:
        line.update(psnr_y=value, bicubic_psnr_y=value)
    run.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_older_journals_without_finite_figures_are_reported_and_published(
    value: float, every: bool, tmp_path: Path
) -> None:
    run = synthetic_run(tmp_path / "run")
    spoil(run, value, every)
    page = write_report(run).read_text()
    assert "NaN" not in page
    checkpoint = run.folder / "checkpoint_00000600"
    checkpoint.mkdir()
    state = TrainState(parse_recipe(RECIPE), CPU)
    state.snapshot().write(checkpoint)
    record = publish_run(run, Store(tmp_path / "store"))
    assert all(math.isfinite(figure) for metrics in record.metrics for figure in metrics.values.values())


def test_the_best_generator_is_one_that_was_measured(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.best.mkdir()
    for name in ("00000010-    nan", "00000020-028.1250", "00000030-    inf", "00000040-009.5000"):
        (run.best / f"gan-{name}.safetensors").touch()
    assert [path.stem[4:12] for path in run._best_of("gan")] == ["00000030", "00000020", "00000040", "00000010"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_sweep_with_such_trials_is_ranked(value: float, tmp_path: Path) -> None:
    sweep = synthetic_sweep(tmp_path / "sweep")
    add_trial(sweep, 1, [26, 27])
    add_trial(sweep, 2, [26, value])
    add_trial(sweep, 3, [value, value])
    results = read_results(sweep)
    assert results.best is not None
    assert all(math.isfinite(o.objective) for o in results.ranked if o.objective is not None)
    assert {o.number for o in results.outcomes} == {1, 2, 3}
    if math.isnan(value):
        assert results.best.number == 1
        assert next(o for o in results.outcomes if o.number == 3).objective is None
