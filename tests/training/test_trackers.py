"""Figures of a run in TensorBoard, Weights & Biases (offline) and MLflow: each stage a run of its own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from ray_sr.errors import ResourceError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training import trackers
from ray_sr.training.trackers import Trackers, check_trackers
from tests.training.test_steps import RECIPE

RECORDS = [
    {"event": "start", "step": 0, "world": 1},
    {"event": "train", "step": 5, "stage": "pretrain", "g_total": 0.5, "lr": 1e-3},
    {"event": "validation", "step": 5, "stage": "pretrain", "psnr_y": 30.25},
    {"event": "train", "step": 6, "stage": "gan", "g_total": 0.125, "d_loss": 0.6875},
]


def track(name: str, folder: Path) -> None:
    folder.mkdir()
    tracked = Trackers(parse_recipe(RECIPE, [f"training.trackers=[{name}]"]), folder)
    for record in RECORDS:
        tracked.hear(record)
    tracked.close()


def scalars(folder: Path) -> dict[str, tuple[int, float]]:
    """Tag -> (step, value) of a TensorBoard folder: records of length, checksum, bytes, checksum."""
    found = {}
    for file in folder.glob("events.*"):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
            place += 16 + length
    return found


def contents(file: Path) -> bytes:
    """What a .wandb file holds: LevelDB's log format, records in pieces that do not cross blocks of 32 KiB."""
    data, place, found = file.read_bytes(), 7, bytearray()
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, _ = struct.unpack_from("<IHB", data, place)
        found += data[place + 7 : place + 7 + length]
        place += 7 + length
    return bytes(found)


def test_tensorboard_has_each_stage_apart(tmp_path: Path) -> None:
    track("tensorboard", tmp_path / "run")
    kept = tmp_path / "run" / "tensorboard"
    assert scalars(kept / "Generator_pretrain") == {
        "train/g_total": (5, 0.5),
        "train/lr": (5, pytest.approx(1e-3)),
        "val/psnr_y": (5, 30.25),
    }
    assert scalars(kept / "SRGAN_training") == {"train/g_total": (6, 0.125), "train/d_loss": (6, 0.6875)}


def test_weights_and_biases_offline_has_each_stage_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track("wandb", tmp_path / "run")
    runs = [contents(file) for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))]
    assert len(runs) == 2
    pretrain, gan = sorted(runs, key=lambda run: b"SRGAN_training" in run)
    assert all(word in pretrain for word in (b"Generator_pretrain", b"val/psnr_y", b"30.25", b"tiny-run"))
    assert all(word in gan for word in (b"SRGAN_training", b"train/d_loss", b"0.6875", b"tiny-run"))
    assert b"d_loss" not in pretrain


def test_mlflow_has_each_stage_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    track("mlflow", tmp_path / "run")
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run.data.metrics for run in client.search_runs([experiment.experiment_id])}
    assert runs["Generator_pretrain"]["val/psnr_y"] == 30.25
    assert runs["SRGAN_training"]["train/d_loss"] == 0.6875


def test_an_absent_tracker_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers._PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ResourceError, match=r"training\.trackers wandb: no_such_package is not installed"):
        check_trackers(["wandb"])
