"""Checkpoints that come faster than they are written, and stops in the middle of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.recipes.reader import parse_recipe
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from tests.photos import write_real_photos
from tests.training.test_launch import final_state

TINY = """
name: tiny
scale: 2
data: {crop: 16, batch: 2, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 4}
pretrain: {steps: 100000, losses: [{kind: l1}]}
validation: {photos: 0}
training: {log_every: 1, checkpoint_every: 1, precision: fp32, cpus_per_worker: 1}
"""
LONGEST = 10.0  # seconds from the last whole checkpoint to the end


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    folder = tmp_path_factory.mktemp("checkpoints")
    photos = find_photos([str(write_real_photos(folder / "photos"))])
    prepare(photos, str(folder / "shards"), cutting=Cutting(sub_image=96, step=96, minimum=64))
    return str(folder / "shards")


def assert_stopped_well(run: Run, ended: float) -> None:
    """The last checkpoint is of the last step, and was whole shortly before the end (`ended`: Unix time)."""
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    assert ended - checkpoint.stat().st_mtime < LONGEST
    assert final_state(run)["step"] == run.records("train")[-1]["step"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.nightly)])
def test_checkpoints_of_every_step_neither_pile_up_nor_delay_the_stop(
    shards: str, tmp_path: Path, times: int
) -> None:
    """As a sweep stops its trials. After 150 steps some 10 checkpoints are whole: the others were left out."""
    for number in range(times):
        run, stop = Run.at(tmp_path / str(number)), threading.Event()

        def hear(record: Record, stop: threading.Event = stop) -> None:
            if record["event"] == "train" and record["step"] >= 150:
                stop.set()

        with pytest.raises(Interrupted):
            train(parse_recipe(TINY), run, shards=shards, listen=hear, stop=stop)
        assert_stopped_well(run, time.time())
        assert len(run.records("left_out")) == 1


def test_slow_steps_hear_of_a_stop_before_their_log_line(shards: str, tmp_path: Path) -> None:
    run, stop = Run.at(tmp_path / "slow"), threading.Event()

    def hear(record: Record) -> None:
        if record["event"] == "start":
            threading.Timer(3, stop.set).start()

    rare = parse_recipe(
        TINY, ["training.log_every=90000", "training.checkpoint_every=90000", "validation.every=90000"]
    )
    began = time.monotonic()
    with pytest.raises(Interrupted):
        train(rare, run, shards=shards, listen=hear, stop=stop)
    assert time.monotonic() - began < 60
    assert final_state(run)["step"] == run.records("train")[-1]["step"] < 90000


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_command_ends_soon_after_its_last_checkpoint(
    shards: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Twenty times each."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    for turn in range(20):
        run = Run.at(tmp_path / str(turn))
        command = [
            sys.executable,
            "-m",
            "ray_sr.cli",
            "train",
            "-c",
            str(config),
            "--data",
            shards,
            "-o",
            run.place,
        ]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 240
        while run.checkpoint() is None and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert_stopped_well(run, time.time())
