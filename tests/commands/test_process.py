"""Commands with closed streams, pipes that have names, full disks behind stdout, and signals on the way."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sr.images import write_bytes
from ray_sr.models.weights import encode_weights
from ray_sr.recipes.reader import load_recipe, recipe_yaml
from ray_sr.storage.local import remove_leftovers, written_aside
from ray_sr.store import load_model
from ray_sr.store.store import SHIPPED
from tests.photos import noise

RAY_SR = f"{sys.executable} -m ray_sr.cli"
UPSCALE = f"{RAY_SR} upscale -n bicubic -s 2"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(noise(20, 24)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        f"{UPSCALE} a.png -o - <&- > b.png",
        f"{UPSCALE} a.png -o b.png <&- >&- 2>&-",
        f"{UPSCALE} <(cat a.png) -o - > b.png",
        f"mkfifo p; cat a.png > p & {UPSCALE} p -o b.png",
        f"{UPSCALE} a.png -o /dev/stdout | cat > b.png",
    ],
)
def test_closed_streams_and_named_pipes_change_nothing(command: str, photo: Path) -> None:
    done = shell(command, photo.parent)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    with Image.open(photo.parent / "b.png") as result:
        assert result.size == (48, 40)
        result.load()
    assert not list(photo.parent.glob(".*.part"))


def test_recipes_and_weights_come_by_pipes_too(tmp_path: Path) -> None:
    def piped(data: bytes) -> Iterator[Path]:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        yield pipe
        writer.join()
        pipe.unlink()

    for pipe in piped(recipe_yaml(load_recipe("light-x2")).encode()):
        assert load_recipe(str(pipe)) == load_recipe("light-x2")
    whole = load_model("light-x2", SHIPPED)
    assert whole.network is not None
    for pipe in piped(encode_weights(whole.module.state_dict(), whole.network)):
        piped_model = load_model(str(pipe))  # whose name says nothing of safetensors
    for key, value in whole.module.state_dict().items():
        assert torch.equal(piped_model.module.state_dict()[key], value)
    buffer = io.BytesIO()
    torch.save({"params": {f"body.{i}.weight": torch.ones(shape) for i, shape in SHAPES.items()} | BIASES}, buffer)
    for pipe in piped(buffer.getvalue()):
        assert load_model(str(pipe)).capability.scale == 2


@pytest.mark.slow
def test_weights_are_imported_from_stdin(tmp_path: Path) -> None:
    whole = load_model("light-x2", SHIPPED)
    assert whole.network is not None
    (tmp_path / "weights").write_bytes(encode_weights(whole.module.state_dict(), whole.network))
    done = shell(f"cat weights | {RAY_SR} models import - --name mine --store s --json", tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_model("mine", tmp_path / "s").network == whole.network


SHAPES = {0: (5, 3, 3, 3), 1: (5,), 2: (5, 5, 3, 3), 3: (5,), 4: (12, 5, 3, 3)}
BIASES = {f"body.{i}.bias": torch.zeros(SHAPES[i][0]) for i in (0, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (f"{UPSCALE} a.png -o - >&-", 2, b"-o -: stdout is closed: name a file"),
        (f"{UPSCALE} a.png -o /dev/full", 2, b"/dev/full: is neither a file nor a folder"),
        (f"touch notes; {UPSCALE} a.png -o notes", 2, b"notes: is a file and no folder: name a folder"),
        (f"{UPSCALE} a.png -o - > /dev/full", 4, b"cannot be written to stdout: No space left on device"),
        (f"{sys.executable} -m ray_sr.cli recipes list > /dev/full", 4, b"cannot be written to stdout"),
        (f"{UPSCALE} <(cat a.png) <(cat a.png) -o out", 3, b"not a regular file"),
        (f"{UPSCALE} a.png -o b.png 2> /dev/full", 4, b""),
        (f"mkdir gone; cd gone; rmdir ../gone; {UPSCALE} /a.png", 4, b"the current folder is gone"),
        (f"{RAY_SR} models import - < a.png", 2, b"weights from stdin have no name: give --name"),
        (f"{RAY_SR} submit train -c <(echo scale: 2)", 2, b"a pipe cannot be sent along with a job"),
    ],
)
def test_what_cannot_go_on_is_one_line(command: str, code: int, message: bytes, photo: Path) -> None:
    done = shell(command, photo.parent)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"defect" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of a file that is written as it is made."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom ray_sr.commands.process import end_by_exception\n"
        "from ray_sr.storage.local import written_aside\nend_by_exception()\n"
        "with written_aside(Path('b.png')) as aside:\n"
        "    aside.write_bytes(b'half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.wait(60) != 0
    assert list(tmp_path.iterdir()) == []


def test_a_hang_up_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """By nohup."""
    program = (
        "import os, signal\nfrom ray_sr.commands.process import end_by_exception\n"
        "end_by_exception()\nos.kill(os.getpid(), signal.SIGHUP)\nprint('still here')\n"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.stdout == b"still here\n"


def test_what_a_killed_run_left_is_removed_by_the_next_one(photo: Path) -> None:
    """But neither what a process that lives is writing, nor files of other names."""
    folder = photo.parent / "out"
    folder.mkdir()
    left, foreign = folder / ".0123456789abcdef.part", folder / ".mine.part"
    left.write_bytes(b"half")
    foreign.write_bytes(b"not ours")
    with written_aside(folder / "other.png") as busy:
        busy.write_bytes(b"half")
        done = shell(f"{UPSCALE} a.png -o out", photo.parent)
        assert done.returncode == 0, done.stderr
        assert not left.exists()
        assert busy.exists()
    assert foreign.exists()
    assert (folder / "other.png").read_bytes() == b"half"


def test_a_link_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    (tmp_path / ".0123456789abcdef.part").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_file_is_locked_as_long_as_it_is_written(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as aside, open(aside, "rb+") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(IsADirectoryError), written_aside(tmp_path / "a") as aside:
        (aside.parent).write_bytes(b"newer")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_many_writers_of_one_file_leave_one_whole(tmp_path: Path) -> None:
    texts = [bytes([value]) * 100_000 for value in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "a", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        remove_leftovers(tmp_path)
        thread.join()
    assert (tmp_path / "a").read_bytes() in texts
    assert os.listdir(tmp_path) == ["a"]
    assert np.frombuffer((tmp_path / "a").read_bytes(), np.uint8).std() == 0
