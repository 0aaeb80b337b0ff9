"""Whole runs on a real Ray: both stages, checkpoints, SIGKILL and resume, Ctrl-C, a lost worker."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image

from ray_sr.data import stream
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.errors import InputError, ModelError, RecipeError, ResourceError
from ray_sr.evaluation import evaluate
from ray_sr.publishing import publish_run
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import Store, load_model
from ray_sr.training import launch
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from ray_sr.training.state import STATE_FILE
from tests.photos import write_real_photos

ROOT = Path(__file__).parents[2]

RECIPE = """
name: tiny
scale: 2
seed: 3
data: {crop: 32, batch: 8, crops_per_image: 2}
generator: {kind: srresnet, blocks: 1, channels: 8}
discriminator: {kind: srgan, channels: 4, hidden: 8}
pretrain: {steps: 20, losses: [{kind: l1}], optimizer: {lr: 1e-3}}
gan:
  steps: 10
  losses: [{kind: perceptual, network: random, layers: {conv2_2: 1}}]
  adversarial: {kind: bce, label_noise: 0.1}
validation: {every: 10, photos: 2}
training: {log_every: 5, checkpoint_every: 5, ema: 0.9, precision: fp32, cpus_per_worker: 1, max_failures: 1}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    folder = tmp_path_factory.mktemp("train")
    photos = find_photos([str(write_real_photos(folder / "photos"))])
    prepare(photos, str(folder / "shards"), cutting=Cutting(sub_image=96, step=96, minimum=64))
    return str(folder / "shards")


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def final_state(run: Run) -> dict[str, object]:
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    return torch.load(checkpoint / STATE_FILE, weights_only=True)


def assert_same(a: object, b: object) -> None:
    """Bit for bit."""
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(scope="module")
def whole_run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.at(tmp_path_factory.mktemp("runs") / "läuft für 30 Schritte ☂")
    assert train(recipe(), run, shards=shards).step == 30
    return run


def test_a_run_trains_both_stages_and_leaves_all_that_is_needed(whole_run: Run) -> None:
    steps = whole_run.records("train")
    assert [record["step"] for record in steps] == list(range(5, 31, 5))
    assert [record["stage"] for record in steps] == ["pretrain"] * 4 + ["gan"] * 2
    assert {"g_l1", "steps_per_s", "data_wait", "lr"} <= steps[0].keys()
    assert {"d_loss", "g_adversarial", "g_perceptual_random", "d_accuracy_real"} <= steps[-1].keys()
    assert [record["step"] for record in whole_run.records("validation")] == [10, 20, 30]
    assert whole_run.recipe() == recipe()
    assert whole_run.facts()["data_digest"]
    assert len(list(whole_run.samples.glob("*.png"))) == 3
    best = max(whole_run.records("validation")[:2], key=lambda record: record["psnr_y"])
    assert [path.name for path in whole_run.best.glob("pretrain-*")] == [
        f"pretrain-{best['step']:08d}-{best['psnr_y']:07.4f}.safetensors"
    ]
    assert load_model(whole_run.generator("best")).version == load_model(whole_run.generator()).version
    assert len(list(whole_run.folder.glob("checkpoint_0*"))) == 3
    model = load_model(whole_run.generator())
    before_gan = load_model(whole_run.generator("pretrain"))
    assert model.network == recipe().network
    assert model.version != before_gan.version


def test_the_best_generator_is_published_with_its_own_figures(whole_run: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = str(write_real_photos(tmp_path / "Two" / "HR", side=96))
    first = min(Path(folder).iterdir())
    first.rename(first.with_name(f"(my) {first.name}"))
    record = publish_run(
        whole_run, store, stage="best", measure_on=[folder], notes="It fails at night.", source="a run"
    )
    validated = {r["step"]: r["psnr_y"] for r in whole_run.records("validation") if r["step"] > 20}
    assert record.provenance.steps in validated
    assert record.metrics[0].values["psnr_y"] == validated[record.provenance.steps] == max(validated.values())
    model = load_model("tiny", store)
    assert model.version == load_model(whole_run.generator("best")).version
    measured = record.metrics[1]
    assert measured.protocol.startswith("Two, ")
    expected = evaluate(model, folder)
    assert measured.values["psnr_y"] == pytest.approx(expected.mean["psnr_y"])
    assert measured.values["bicubic_psnr_y"] == pytest.approx(expected.bicubic["psnr_y"])
    card = (tmp_path / "store" / "models" / "tiny" / record.version / "card.md").read_text()
    assert "It fails at night." in card
    assert "| Source | a run |" in card
    *photos, curves = record.pictures
    assert photos
    assert all(name.startswith("Two-") for name in photos)
    assert curves == "training.png"
    for name in record.pictures:
        assert f"(pictures/{name})" in card
        with Image.open(tmp_path / "store" / "models" / "tiny" / record.version / "pictures" / name) as picture:
            assert picture.format == ("PNG" if name == curves else "JPEG")


def test_pictures_may_be_of_other_photos_than_figures(whole_run: Run, tmp_path: Path) -> None:
    hr, lr = (tmp_path / name for name in ("shown/HR", "lr"))
    write_real_photos(hr, side=64)
    lr.mkdir()
    for path in hr.iterdir():
        with Image.open(path) as photo:
            photo.resize((photo.width // 2, photo.height // 2)).save(lr / path.name)
    measured = str(write_real_photos(tmp_path / "Two" / "HR", side=96))
    given = f"{hr},{lr}"
    record = publish_run(whole_run, Store(tmp_path / "store"), measure_on=[measured, given], pictures_of=given)
    *photos, curves = record.pictures
    assert sorted(photos) == sorted(f"shown-{path.stem}.jpg" for path in hr.iterdir())
    assert curves == "training.png"
    assert [metrics.protocol.split(",")[0] for metrics in record.metrics[1:]] == ["Two", "shown"]
    assert "LR: given photos" in record.metrics[2].protocol


def test_half_precision_is_measured_as_it_is_stored(whole_run: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = str(write_real_photos(tmp_path / "Two" / "HR", side=96))
    whole, half = (publish_run(whole_run, store, half=half, measure_on=[folder]) for half in (False, True))
    sizes = [
        (tmp_path / "store" / "models" / "tiny" / record.version / "model.safetensors").stat().st_size
        for record in (whole, half)
    ]
    assert sizes[1] < 0.7 * sizes[0]
    model = load_model(half.ref, store)
    assert all(value.dtype == torch.float32 for value in model.module.state_dict().values() if value.ndim)
    assert half.metrics[1].values["psnr_y"] == pytest.approx(evaluate(model, folder).mean["psnr_y"], abs=1e-9)
    assert half.metrics[1].values["psnr_y"] == pytest.approx(whole.metrics[1].values["psnr_y"], abs=0.01)


def test_killed_and_resumed_equals_never_killed(whole_run: Run, shards: str, tmp_path: Path) -> None:
    """SIGKILL of the whole run, driver and Ray, in the middle: the resumed one ends bit for bit the same."""
    folder = tmp_path / "killed"
    config = tmp_path / "tiny.yaml"
    config.write_text(RECIPE)
    command = [sys.executable, "-m", "ray_sr.cli", "train", "-c", str(config), "--data", shards, "-o", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    run = Run.at(folder)
    deadline = time.monotonic() + 420
    while run.checkpoint() is None and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    assert int(checkpoint.name.removeprefix("checkpoint_")) < 30
    train(recipe(), run, shards=shards, resume=True)
    assert_same(final_state(run), final_state(whole_run))
    steps = [record["step"] for record in run.records("train")]
    assert steps == list(range(5, 31, 5))
    for ours, theirs in zip(run.records("train"), whole_run.records("train"), strict=True):
        assert ours["g_total"] == theirs["g_total"]


def test_a_worker_that_dies_is_replaced_and_goes_on_from_the_last_checkpoint(
    whole_run: Run, shards: str, tmp_path: Path
) -> None:
    run = Run.at(tmp_path / "worker")
    killed: list[int] = []

    def kill_once(record: dict[str, object]) -> None:
        if record["event"] == "train" and record["step"] == 15 and not killed:
            killed.extend(_train_worker_pids())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    assert train(recipe(), run, shards=shards, listen=kill_once).step == 30
    assert killed
    assert len(run.records("start")) == 2
    assert_same(final_state(run), final_state(whole_run))


def _train_worker_pids() -> list[int]:
    """Processes of Ray Train workers that this session started: Ray names them after their actor."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if b"RayTrainWorker" in title and _descends_from(int(folder.name), os.getpid()):
            found.append(int(folder.name))
    return found


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
    return False


def test_two_workers_that_go_on_use_the_rows_of_two_that_never_stopped(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, crops made by tasks or in the workers, in pieces of 8 steps which no step notices."""
    monkeypatch.setattr(stream, "SEGMENT_BLOCKS", 1)
    monkeypatch.setattr(stream, "VISITS_PER_TASK", 16)
    two = ("training.workers=2", "pretrain.steps=24", "gan.steps=3", "validation.every=12")
    whole, halted = (Run.at(tmp_path / name) for name in ("whole", "halted"))
    assert train(recipe(*two, "data.degrade_in=tasks"), whole, shards=shards).step == 27
    assert whole.records("start")[0]["world"] == 2
    assert whole.records("validation")[-1]["psnr_y"] > 0

    stop = threading.Event()

    def stop_early(record: Record) -> None:
        if record["event"] == "train":
            stop.set()

    with pytest.raises(Interrupted):
        train(recipe(*two, "data.degrade_in=worker"), halted, shards=shards, listen=stop_early, stop=stop)
    assert final_state(halted)["step"] < 20
    train(recipe(*two, "data.degrade_in=tasks"), halted, shards=shards, resume=True)
    ours, theirs = ({**final_state(run), "recipe": None} for run in (halted, whole))
    assert_same(ours, theirs)


@ray.remote(num_cpus=1)
class Neighbour:
    """Takes a CPU for as long as it lives."""

    def is_there(self) -> bool:
        return True


def test_a_run_whose_cpus_others_took_says_that_it_waits(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SILENT_SECONDS", 1.0)
    stop = threading.Event()
    neighbours: list[Any] = []
    heard: list[str] = []

    def listen(record: Record) -> None:
        heard.append(record["event"])
        if record["event"] == "train" and not neighbours:
            neighbours.extend(Neighbour.remote() for _ in range(3))
        elif record["event"] == "waiting":
            for neighbour in neighbours:
                ray.kill(neighbour)
        elif "waiting" in heard:
            stop.set()

    endless = recipe("pretrain.steps=100000", "data.degrade_in=tasks", "training.checkpoint_every=100000")
    with pytest.raises(Interrupted):
        launch.train(endless, Run.at(tmp_path / "crowded"), shards=shards, listen=listen, stop=stop)
    assert "train" in heard[heard.index("waiting") :]


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(shards: str, tmp_path: Path) -> None:
    run = Run.at(tmp_path / "nan")
    wild = recipe(
        "pretrain.losses=[{kind: mse, weight: 1e38}]", "pretrain.steps=40", "training.checkpoint_every=40"
    )
    with pytest.raises(Exception, match="10 steps in a row had a loss that is not finite"):
        train(wild, run, shards=shards)


def test_no_two_trainings_in_one_folder(whole_run: Run, shards: str) -> None:
    files = {path: path.stat().st_mtime_ns for path in whole_run.folder.rglob("*") if path.is_file()}
    with whole_run.held(), pytest.raises(ResourceError, match=r"the run .*☂ is in use by another process"):
        train(recipe(), Run.at(whole_run.folder), shards=shards, resume=True)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_filesystem_without_locks_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with Run.at(tmp_path / "run").held():
        assert (tmp_path / "run").is_dir()


def test_what_is_wrong_is_told_before_any_work(whole_run: Run, shards: str, tmp_path: Path) -> None:
    fresh = Run.at(tmp_path / "fresh")
    with pytest.raises(RecipeError, match="no data: give --data"):
        train(recipe(), fresh)
    with pytest.raises(InputError, match="cannot read the shards"):
        train(recipe(), fresh, shards=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="there is a run already"):
        train(recipe(), whole_run, shards=shards)
    with pytest.raises(InputError, match="nothing to resume"):
        train(recipe(), fresh, shards=shards, resume=True)
    with pytest.raises(ResourceError, match="leave none of 4 CPUs"):
        train(recipe("training.cpus_per_worker=4"), fresh, shards=shards)
    with pytest.raises(ResourceError, match="need a GPU each"):
        train(recipe("training.device=gpu"), fresh, shards=shards)
    no_weights = recipe("gan.losses=[{kind: perceptual}]", f"features.weights={tmp_path}/no-such.pth")
    with pytest.raises(InputError, match=r"no-such\.pth"):
        train(no_weights, fresh, shards=shards)
    with pytest.raises(ModelError, match="belong to another network"):
        train(recipe("generator.blocks=2"), whole_run, shards=shards, resume=True)
    with pytest.raises(RecipeError, match=r"the GAN stage began at step 20: pretrain.steps cannot become 40"):
        train(recipe("pretrain.steps=40"), whole_run, shards=shards, resume=True)
    assert whole_run.recipe() == recipe()  # what is refused has changed nothing
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ResourceError, match=r"is, or lies below, a file|cannot write the run here"):
            train(recipe(), Run.at(place), shards=shards)
    assert not list(tmp_path.glob("fresh/checkpoint_*"))


def test_a_gan_stage_is_added_on_other_photos(shards: str, tmp_path: Path) -> None:
    """Told, with a best/ of its own; the last checkpoint is damaged, so that it goes on from the one before."""
    run, heard = Run.at(tmp_path / "run"), []
    short = ("pretrain.steps=10", "gan.steps=4", "validation.every=5")
    train(recipe(*short, "gan=null", "discriminator=null"), run, shards=shards)
    first = sorted(path.name for path in run.best.iterdir())
    (run.folder / "checkpoint_00000010" / STATE_FILE).write_bytes(b"cut")
    others = str(tmp_path / "others")
    photos = find_photos([str(write_real_photos(tmp_path / "photos", side=128))])
    prepare(photos, others, cutting=Cutting(sub_image=96, step=96, minimum=64))
    trained = train(recipe(*short), run, shards=others, resume=True, listen=heard.append)
    assert trained.step == 14
    told = next(record for record in heard if record["event"] == "resumed")
    assert told["step"] == 5
    assert list(told["damaged"]) == ["checkpoint_00000010"]
    assert told["changed"].keys() == {"data_digest", "held_out_digest"}
    assert [record["stage"] for record in run.records("train")][-1] == "gan"
    assert load_model(run.generator("pretrain")).version != load_model(run.generator()).version
    aside = [path for path in run.folder.glob("best-*") if path.is_dir()]
    assert [sorted(path.name for path in folder.iterdir()) for folder in aside] == [first]
    assert {path.name.split("-")[1] for path in run.best.iterdir()} <= {"00000010", "00000014"}


def test_ctrl_c_saves_a_checkpoint_first(shards: str, tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    config = tmp_path / "tiny.yaml"
    config.write_text(RECIPE)
    long = ["pretrain.steps=100000", "training.checkpoint_every=100000"]
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
        str(folder),
        *long,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    run = Run.at(folder)
    deadline = time.monotonic() + 420
    while not run.records("train") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "checkpoint saved: go on with --resume" in errors
    assert "Traceback" not in errors
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    last = [json.loads(line) for line in run.journal.read_text().splitlines()][-1]
    assert final_state(run)["step"] == last["step"]


@pytest.mark.cluster
@pytest.mark.parametrize(
    "fewest",
    [pytest.param(2, id="replaced"), pytest.param(1, id="done without", marks=pytest.mark.nightly)],
)
def test_a_lost_node_is_survived(shards: str, tmp_path: Path, fewest: int) -> None:
    """Two raylets, one worker on each; one is removed in the middle: the run ends with the right step count.

    The worker moves to the other node where there is room, or the run goes on with one worker if it may.
    """
    environment = {**os.environ, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.training.lose_a_node", shards, str(tmp_path / "run"), str(fewest)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lost_at"]
    assert result["ended_at"] == 60
    assert result["starts"][0] == [0, 2]
    last_start, world = result["starts"][-1]  # from a checkpoint; one that was being written is not counted
    assert last_start % 10 == 0
    assert world == fewest
    assert result["steps"] == list(range(5, 61, 5))


def test_a_full_disk_stops_the_run_and_leaves_the_former_checkpoint(shards: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: needs root")
    run = Run.at(small / "run")

    whole: list[int] = []  # step of the checkpoint that was there before the disk was full

    def fill(record: dict[str, object]) -> None:
        if record["event"] == "train" and not whole and run.checkpoint():
            whole.append(int(str(run.checkpoint())[-8:]))
            with (small / "junk").open("wb", buffering=0) as junk, contextlib.suppress(OSError):
                while junk.write(bytes(4096)):
                    pass

    try:
        with pytest.raises(ResourceError, match=r"No space left|cannot write"):
            train(recipe("training.keep_best=0"), run, shards=shards, listen=fill)
        assert whole
        assert whole[0] <= final_state(run)["step"] < 30
        assert not list(run.folder.glob(".checkpoint_*"))
        (small / "junk").unlink()
        (run.folder / ".checkpoint_00000007.partial").mkdir()  # as a killed machine leaves it
        assert train(recipe("training.keep_best=0"), run, shards=shards, resume=True).step == 30
        assert not list(run.folder.glob(".checkpoint_*"))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
