"""Homes, folders of Ray and files that belong to somebody else: one line, and the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ray_sr.cli import main
from tests.photos import noise

ROOT = Path(__file__).parents[2]
# Runs what follows as nobody, with the Python of this process under a name that everybody reaches.
AS_NOBODY = """
set -e
mount --bind {prefix} {python}
exec setpriv --reuid=65534 --regid=65534 --clear-groups env LD_LIBRARY_PATH={python}/lib "$@"
"""
# Runs several commands in one process; a line of JSON for each: its exit code, and what it says on stderr.
COMMANDS = """
import contextlib, io, json, sys
from ray_sr.cli import main
for command in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command.split())
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, err.getvalue()]))
"""


@pytest.fixture
def folders() -> Iterator[Path]:
    """work/ is for everybody; home/ and ray/ are somebody else's: home/ cannot be entered, ray/ not be written.

    Not below pytest's own folder, which nobody else may enter.
    """
    with tempfile.TemporaryDirectory(prefix="rsr-") as name:
        base = Path(name)
        base.chmod(0o755)
        for part, mode in (("work", 0o777), ("python", 0o755), ("home", 0o700), ("ray", 0o755)):
            (base / part).mkdir()
            (base / part).chmod(mode)
        yield base


def run_as_other(base: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python as one whose home/ and ray/ are not: root becomes nobody, others give up their own rights there."""
    python, packages = base / "python", [path for path in sys.path if path.endswith("site-packages")]
    settings = {
        "HOME": str(base / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *packages]),
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, *arguments]
    if os.geteuid() == 0:
        script = AS_NOBODY.format(prefix=sys.base_prefix, python=python)
        version = f"{python}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        command = ["unshare", "--mount", "bash", "-c", script, "bash", version, *arguments]
    else:
        (base / "home").chmod(0)
        (base / "ray").chmod(0o500)
    done = subprocess.run(command, cwd=base / "work", env=settings, capture_output=True, text=True, timeout=280)
    (base / "home").chmod(0o700)
    if done.stderr.startswith(("unshare: ", "mount: ")):
        pytest.skip(f"nobody else can run Python here: {done.stderr.splitlines()[0]}")
    return done


SAYS = {
    "doctor": (0, ""),
    "upscale a.png -n bicubic -s 2 -o b.png": (0, ""),
    "models list": (
        4,
        "the model store ~/.ray-sr/models: Permission denied; --store or RAY_SR_STORE names another",
    ),
    "models promote light-x4 best": (4, "cannot make this folder: Permission denied"),
    "upscale a.png -n bicubic -s 2 -o {home}/b.png": (3, "Permission denied"),
    "upscale {home}/a.png -n bicubic -s 2": (3, "Permission denied"),
    "upscale {home} -n bicubic -s 2 -o large": (3, "Permission denied"),
    "recipes check {home}/mine.yaml": (3, "Permission denied"),
    "report {home}/run": (4, "Permission denied"),
    "data info {home}/shards": (3, "Permission denied"),
    "keys add ann --file {home}/keys.json": (4, "Permission denied"),
    "evaluate bicubic --hr {home}/photos": (3, "Permission denied"),
    "train -c demo --data {home}/shards": (3, "Permission denied"),
    "models import {home}/4x.pth": (3, "Permission denied"),
}


@pytest.mark.slow
def test_a_home_of_somebody_else_is_one_line(folders: Path) -> None:
    Image.fromarray(noise(20, 24)).save(folders / "work" / "a.png")
    commands = [command.format(home=folders / "home") for command in SAYS]
    done = run_as_other(folders, "-c", COMMANDS, *commands)
    assert done.returncode == 0, done.stderr
    wrong = []
    for command, line, (code, says) in zip(commands, done.stdout.splitlines(), SAYS.values(), strict=True):
        got, err = json.loads(line)
        if (got, says in err, "defect" in err, "Traceback" in err) != (code, True, False, False):
            wrong.append((command, got, err))
    assert not wrong


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/etc/secret"), OSError(24, "Too many open files")]
)
def test_refusals_of_the_system_are_no_defects(
    error: OSError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("ray_sr.cli.cli.main", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    place = f"{error.filename}: " if error.filename else ""
    assert ended.value.code == 4
    assert capsys.readouterr().err == f"error: {place}{error.strerror}\n"
