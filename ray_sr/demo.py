"""The whole product once, small: photographs -> shards -> two-stage training -> evaluation -> model store ->
endpoint -> an upscaled photo -> a report. On a Ray of its own, with the photographs that scikit-image carries.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from ray_sr.cluster import connect, disconnect
from ray_sr.data.manifest import Cutting
from ray_sr.data.samples import samples_folder
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.evaluation import Evaluation, evaluate
from ray_sr.images import read_photo, rgb8, write_bytes
from ray_sr.progress import Progress
from ray_sr.publishing import publish_run
from ray_sr.publishing.report import ExtraSection, Picture, write_report
from ray_sr.recipes.reader import load_recipe
from ray_sr.store import Store, load_model
from ray_sr.training.launch import train
from ray_sr.training.progress import TrainingProgress
from ray_sr.training.runs import Run

PHOTOS = (
    "astronaut.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "chelsea.png",
)
HELD_OUT = "chelsea.png"


def run_demo(folder: Path, *, verbose: bool = False) -> Path:
    """Run every stage into `folder` (emptied first if an earlier demo made it) and return the report's path."""
    stages = _Stages()
    _clear(folder)
    stages.begin("photographs from scikit-image")
    photos = _collect_photos(folder / "photos")
    stages.begin("Ray on this machine")
    connect(verbose)
    try:
        stages.begin("prepare: photographs to shards")
        _prepare(photos, folder / "shards")
        stages.begin("train: SRResNet by pixel loss, then SRGAN (an untrained feature network stands in for VGG19)")
        run = _train(folder)
    finally:
        disconnect()
    stages.begin("evaluate on the held-out photo")
    evaluations = _evaluate(folder, photos, run)
    stages.begin("publish")
    store = Store(folder / "store")
    for stage in ("pretrain", "last"):
        record = publish_run(run, store, stage=stage, promote="best" if stage == "pretrain" else None)
        _say(f"{record.ref} in {store.root}")
    stages.begin("serve, and upscale the held-out photo through the endpoint")
    upscaled = _through_the_endpoint(folder, photos / HELD_OUT)
    stages.begin("report")
    return _report(folder, run, evaluations, photos / HELD_OUT, upscaled)


class _Stages:
    """Says which stage begins and how long the run has taken so far."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._count = 0

    def begin(self, title: str) -> None:
        self._count += 1
        _say(f"[{self._count}/8, {time.monotonic() - self._began:4.0f} s] {title}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clear(folder: Path) -> None:
    for name in ("photos", "held-out", "shards", "run", "store", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _collect_photos(folder: Path) -> Path:
    """Copies of the photographs inside scikit-image's package."""
    source = samples_folder()
    folder.mkdir()
    for name in PHOTOS:
        shutil.copy(source / name, folder / name)
    return folder


def _prepare(photos: Path, shards: Path) -> None:
    found = find_photos([str(photos)])
    with Progress("preparing", len(found), "photos") as progress:
        made = prepare(
            found,
            str(shards),
            cutting=Cutting(sub_image=240, step=200),
            hold_out=[HELD_OUT],
            progress=lambda record: progress.advance(),
        )
    _say(f"{made.manifest.rows('train')} sub-images of {made.manifest.photos['train']} photos")


def _train(folder: Path) -> Run:
    recipe = load_recipe("demo")
    run = Run.at(folder / "run")
    with TrainingProgress(recipe) as progress:
        train(recipe, run, shards=str(folder / "shards"), listen=progress.hear)
    return run


def _evaluate(folder: Path, photos: Path, run: Run) -> dict[str, Evaluation]:
    held_out = folder / "held-out"
    held_out.mkdir()
    shutil.copy(photos / HELD_OUT, held_out)
    results = {}
    for stage, title in (("pretrain", "SRResNet"), ("last", "SRGAN")):
        pictures = folder / "pictures" / title
        results[title] = evaluate(load_model(run.generator(stage)), held_out, pictures=pictures)
        _say(f"{title}\n{results[title].table()}")
    return results


def _through_the_endpoint(folder: Path, photo: Path) -> Path:
    from ray_sr.client import upscale
    from ray_sr.serving.options import ServiceOptions
    from ray_sr.serving.run import running_service

    options = ServiceOptions(model="best", store=str(folder / "store"))
    target = folder / f"{photo.stem}_x2.png"
    with running_service(options) as url:
        _say(f"serving at {url}")
        answer = upscale(url, photo)
    write_bytes(target, answer.data)
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in answer.seconds.items())
    _say(f"{photo.name} -> {target} ({answer.model}; {took})")
    return target


def _report(folder: Path, run: Run, evaluations: dict[str, Evaluation], photo: Path, upscaled: Path) -> Path:
    before, after = rgb8(read_photo(photo)), rgb8(read_photo(upscaled))
    sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (before, after)]
    text = f"{photo.name}, {sizes[0]}, sent to POST /v1/upscale of the published model: {sizes[1]} came back."
    picture = Picture.of(upscaled, f"{upscaled.name}, as the endpoint sent it")
    section = ExtraSection("Through the endpoint", text, [picture])
    return write_report(run, folder / "report.html", evaluations=evaluations, extra=[section])
