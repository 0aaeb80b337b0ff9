"""Where shards, runs and models lie: names below RAY_SR_STORAGE, and runs in what is no folder.

`fsspec+file://` stands for a bucket: to pyarrow, to Ray Train and to this package it is no local folder, so
nothing is renamed, locked or appended to there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sr.errors import RecipeError
from ray_sr.publishing import publish_run
from ray_sr.recipes.reader import parse_recipe
from ray_sr.storage import resolve_location
from ray_sr.store import Store
from ray_sr.training.launch import train
from ray_sr.training.runs import Run
from ray_sr.tuning.folder import SweepFolder
from tests.photos import write_real_photos
from tests.synthetic_run import synthetic_run

RECIPE = """
name: far
scale: 2
data: {crop: 32, batch: 4, crops_per_image: 2, degrade_in: worker}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 4, losses: [{kind: l1}]}
validation: {photos: 1, every: 2}
training: {log_every: 1, checkpoint_every: 2, cpus_per_worker: 0.5, precision: fp32}
"""


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where no run leaves anything
    (tmp_path / "bucket").mkdir()
    return f"fsspec+file://{tmp_path}/bucket"


def test_names_lie_below_the_storage_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_SR_STORE", raising=False)
    assert resolve_location("runs/a") == f"{tmp_path}/runs/a"
    assert resolve_location("/data/a") == "/data/a"
    assert resolve_location("gs://other/a") == "gs://other/a"
    monkeypatch.setenv("RAY_SR_STORAGE", "s3://bucket/all/")
    assert resolve_location("runs/a") == "s3://bucket/all/runs/a"
    assert resolve_location("/data/a") == "/data/a"
    assert resolve_location("gs://other/a") == "gs://other/a"
    monkeypatch.setenv("RAY_SR_STORAGE", "/nfs/all")
    assert resolve_location("runs/a") == "/nfs/all/runs/a"
    assert Store().root == "/nfs/all/models"
    monkeypatch.setenv("RAY_SR_STORE", "/other/models")
    assert Store().root == "/other/models"


def test_a_job_leaves_nothing_in_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(RecipeError, match=r"^runs/a: the folder of a job goes with it: .* RAY_SR_STORAGE"):
        Run.at("runs/a")
    monkeypatch.setenv("RAY_SR_STORAGE", "/nfs")
    assert Run.at("runs/a").place == "/nfs/runs/a"


def test_a_sweep_in_a_bucket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SR_STORAGE", "s3://bucket")
    with pytest.raises(RecipeError, match=r"^s3://bucket/sweep: .* give a folder"):
        SweepFolder.at("sweep")


def test_a_mirror_brings_what_changed_and_forgets_what_went(bucket: str) -> None:
    run = Run.at(f"{bucket}/run")
    run.folder.rmdir()
    synthetic_run(run.folder, until=100)
    (run.folder / "samples" / ".half.tmp").write_bytes(b"half")
    run.push()
    there = Path(bucket.partition("://")[2]) / "run"
    assert {path.name for path in there.rglob("*.png")} == {"00000050.png", "00000100.png"}
    before = (there / "recipe.yaml").stat().st_mtime_ns
    (run.folder / "samples" / "00000050.png").unlink()
    with run.journal.open("a") as journal:
        journal.write('{"event": "train", "step": 101}\n')
    run.push()
    assert (there / "metrics.jsonl").read_bytes() == run.journal.read_bytes()
    assert {path.name for path in there.rglob("*.png")} == {"00000100.png"}
    assert (there / "recipe.yaml").stat().st_mtime_ns == before
    again = Run.existing(f"{bucket}/run")
    assert again.recipe().name == "srgan-demo"
    assert again.records("train")[-1]["step"] == 101


def test_reading_a_run_in_a_bucket_leaves_its_training_alone(bucket: str) -> None:
    training = Run.at(f"{bucket}/run")
    training.folder.rmdir()
    synthetic_run(training.folder, until=50)
    training.push()
    with training.journal.open("a") as journal:
        reader = Run.at(f"{bucket}/run")
        journal.write('{"event": "train", "step": 51}\n')
    training.push()
    assert reader.records("train")[-1]["step"] == 50
    assert Run.at(f"{bucket}/run").records("train")[-1]["step"] == 51


@pytest.mark.usefixtures("ray_local")
def test_a_run_in_a_bucket_is_trained_resumed_and_published(bucket: str, tmp_path: Path) -> None:
    from ray_sr.data.manifest import Cutting
    from ray_sr.data.shards import prepare
    from ray_sr.data.sources import find_photos

    found = find_photos([str(write_real_photos(tmp_path / "photos", side=160))])
    shards, place = f"{bucket}/shards", f"{bucket}/runs/far"
    prepare(found, shards, cutting=Cutting(sub_image=64, step=64, minimum=64))
    assert train(parse_recipe(RECIPE), Run.at(place), shards=shards).step == 4
    assert Run.existing(place).checkpoint()
    there = Path(bucket.partition("://")[2]) / "runs" / "far"
    (there / "checkpoint_manager_snapshot.json").write_text("{")  # Ray's note is lost
    train(parse_recipe(RECIPE, ["pretrain.steps=6"]), Run.at(place), shards=shards, resume=True)
    run = Run.existing(place)  # from the bucket anew, as another machine reads it
    assert [record["step"] for record in run.records("start")] == [0, 4]
    assert [record["step"] for record in run.records("train")] == [1, 2, 3, 4, 5, 6]
    assert len(list(run.best.iterdir())) == 1
    store = Store(f"{bucket}/models")
    record = publish_run(Run.existing(place), store)
    assert record.provenance.source == place
    assert store.load("far").version == record.version
