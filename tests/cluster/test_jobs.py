"""Every script of jobs/ and `ray-sr submit` against a running head that wants a token."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sr.cluster.jobs import RayJob, _ctrl_c, _Log, stage
from ray_sr.errors import RecipeError
from tests.cluster.ray_head import RAY, Head, running_head
from tests.photos import write_real_photos

ROOT = Path(__file__).parents[2]
SUBMIT = (sys.executable, "-m", "ray_sr.cli", "submit")
TINY = """
name: tiny
scale: 2
data: {crop: 32, batch: 4, crops_per_image: 2, degrade_in: worker}
generator: {kind: srresnet, blocks: 1, channels: 8}
pretrain: {steps: 2, losses: [{kind: l1}]}
validation: {photos: 1, every: 2}
training: {log_every: 1, checkpoint_every: 2, cpus_per_worker: 0.5, precision: fp32}
"""
SPACE = """
fields: {generator.channels: {grid: [4]}}
searcher: grid
scheduler: none
"""
WRONG = "name: tiny\nscael: 2\n"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(cpus=4) as head:
        yield head


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ray job submit --working-dir .` uploads: a checkout without its history, with a recipe of one's own."""
    folder = tmp_path_factory.mktemp("clean")
    for name in ("jobs", "ray_sr"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "wrong.yaml").write_text(WRONG)
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return write_real_photos(folder, side=160)


@pytest.fixture(scope="module")
def shards(head: Head, clean: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Made by the first of the scripts."""
    shards = str(tmp_path_factory.mktemp("data") / "shards")
    cutting = ("--sub-image", "64", "--minimum", "64")
    code, said = ray_job(head, clean, "prepare_data", str(photos), "-o", shards, *cutting)
    assert code == 0, said
    return shards


def ended(head: Head, folder: Path, *command: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a client that has run to its end."""
    process = head.client(*command, folder=folder, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def ray_job(head: Head, folder: Path, script: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `ray job submit` as the documentation writes it."""
    plain = {"PYTHONPATH": ""}  # the code comes from the upload alone
    command = (RAY, "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{script}.py", *arguments)
    code, out, err = ended(head, folder, *command, **plain)
    return code, out + err


@pytest.mark.nightly
def test_every_script_runs_as_a_job(head: Head, clean: Path, photos: Path, shards: str, tmp_path: Path) -> None:
    run, store, large, sweep = (str(tmp_path / name) for name in ("run", "store", "large", "sweep"))
    steps = [
        ("train", "-c", "tiny.yaml", "--data", shards, "-o", run),
        ("publish", run, "--store", store, "--promote", "best"),
        ("evaluate", "best", "--store", store, "--hr", str(photos), "--limit", "1"),
        ("upscale", str(photos), "-o", large, "-n", "best", "--store", store),
        ("sweep", "-c", "tiny.yaml", "-s", "space.yaml", "--data", shards, "-o", sweep),
    ]
    said = {}
    for script, *arguments in steps:
        code, said[script] = ray_job(head, clean, script, *arguments)
        assert code == 0, said[script]
    assert "2 steps done" in said["train"]
    assert "tiny@" in said["publish"]
    assert "tiny@" in said["evaluate"]
    assert len(list(Path(large).glob("*.png"))) == len(list(photos.iterdir()))
    assert (Path(sweep) / "best.yaml").is_file()


def test_a_wrong_recipe_fails_with_the_message_of_the_laptop(head: Head, clean: Path) -> None:
    here = ended(head, clean, sys.executable, "jobs/train.py", "-c", "wrong.yaml")
    code, said = ray_job(head, clean, "train", "-c", "wrong.yaml")
    message = "error: scael: unknown key, did you mean 'scale'? [wrong.yaml:2]"
    assert here == (2, "", f"{message}\n")
    assert code == 1  # all that `ray job submit` says of a job that failed
    assert message in said
    assert "failed with exit code 2" in said
    assert ended(head, clean, *SUBMIT, "train", "-c", "wrong.yaml") == here  # and nothing was submitted


def test_nothing_is_submitted_without_the_token(head: Head, clean: Path) -> None:
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "of another cluster"}):
        code, out, err = ended(head, clean, *SUBMIT, "evaluate", "bicubic", "--hr", "photos", **environment)
        assert (code, out) == (6, "")
        assert err.startswith(f"error: {head.url} refuses without the cluster's token")
        code, out, err = ended(head, clean, RAY, "job", "submit", "--", "true", **environment)
        assert code != 0
        assert "AuthenticationError" in err


def test_submit_ends_with_the_exit_code_of_the_job(head: Head, clean: Path, tmp_path: Path) -> None:
    code, out, err = ended(head, clean, *SUBMIT, "--id", "lost", "publish", str(tmp_path / "no-run"))
    assert code == 3, err
    assert "no run here" in out
    again = ended(head, clean, *SUBMIT, "--follow", "lost")
    assert again[0] == 3
    assert "no run here" in again[1]
    code, _, err = ended(head, clean, *SUBMIT, "--follow", "nobody")
    assert code == 6
    assert "nobody does not exist" in err


def test_an_interrupted_submit_leaves_the_job_which_can_be_stopped_with_a_checkpoint(
    head: Head, clean: Path, shards: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    many = ("pretrain.steps=1000000", "validation.photos=0", "training.checkpoint_every=500000")
    arguments = ("train", "-c", "tiny.yaml", *many, "--data", shards, "-o", str(run))
    watching = head.client(*SUBMIT, "--id", "long", *arguments, folder=clean)
    deadline = time.monotonic() + 240
    journal = run / "metrics.jsonl"
    while not (journal.exists() and '"train"' in journal.read_text()) and time.monotonic() < deadline:
        assert watching.poll() is None, watching.communicate()
        time.sleep(0.2)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "ray-sr submit --follow long" in err
    assert "RUNNING" in status_of(head, clean, "long")
    assert ended(head, clean, RAY, "job", "stop", "long")[0] == 0
    assert ended(head, clean, *SUBMIT, "--follow", "long")[0] == 130
    steps = [json.loads(line)["step"] for line in journal.read_text().splitlines()]
    saved = [int(path.parent.name.split("_")[1]) for path in run.glob("checkpoint_*/state.pt")]
    assert saved == [max(steps)]


def status_of(head: Head, folder: Path, job: str) -> str:
    code, out, err = ended(head, folder, RAY, "job", "status", job)
    assert code == 0, err
    return out + err


def test_ctrl_c_counts_even_where_its_exception_is_lost() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _ctrl_c() as pressed:
        log = _Log(str, pressed)
        log.stop_if_pressed()
        with contextlib.suppress(KeyboardInterrupt):  # as a connection that answers with an error of its own
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            log.stop_if_pressed()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_absent_job_server_is_one_line(head: Head, clean: Path) -> None:
    nobody = "http://127.0.0.1:1"
    code, out, err = ended(head, clean, *SUBMIT, "--address", nobody, "evaluate", "bicubic", "--hr", "x")
    assert (code, out) == (6, "")
    assert err.startswith(f"error: no job server at {nobody}")
    assert err.count("\n") == 1


def size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_only_what_a_job_needs_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.yaml").write_text(TINY)
    (tmp_path / "here" / "photo.png").write_bytes(b"x" * 10_000)
    staged = tmp_path / "staged"
    staged.mkdir()
    arguments = stage(RayJob(("train", "--recipe=../mine.yaml", "seed=3"), files=("../mine.yaml",)), staged)
    assert arguments == ["train", "--recipe=files/0/mine.yaml", "seed=3"]
    assert (staged / "files/0/mine.yaml").read_text() == TINY
    assert {path.name for path in staged.iterdir()} == {"files", "ray_sr"}
    assert size(staged) - size(staged / "ray_sr/weights") < 5 << 20
    assert size(staged / "ray_sr/weights") == size(ROOT / "ray_sr/weights") < 25 << 20
    (tmp_path / "mine.yaml").write_text("#" * (2 << 20))
    with pytest.raises(RecipeError, match="too large to send"):
        stage(RayJob(("train", "-c", "../mine.yaml"), files=("../mine.yaml",)), tmp_path / "other")
