"""Files written aside: whole or as they were, with their mode, and without the weight of pyarrow."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ray_sr.storage import first_line
from ray_sr.storage.local import atomic_write, written_aside


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    with written_aside(path) as aside:
        aside.write_bytes(b"n")
        assert aside.parent == tmp_path
        assert path.read_bytes() == b"old"
        aside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail() -> None:
        with written_aside(path) as aside:
            aside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        atomic_write(tmp_path / "no folder" / "file", b"x")


def test_a_secret_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(stat.S_IMODE(os.fstat(file).st_mode)))
    atomic_write(tmp_path / "keys", b"secret", 0o600)
    assert [*seen, stat.S_IMODE((tmp_path / "keys").stat().st_mode)] == [0o600, 0o600]


def test_pictures_are_written_without_pyarrow_and_torch() -> None:
    code = "import sys, ray_sr.images; print([m for m in ('pyarrow', 'torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_without_words_is_told_by_its_kind() -> None:
    told = [first_line(error) for error in (EOFError(), ValueError(" \n"), OSError(28, "full"), ValueError("a\nb"))]
    assert told == ["EOFError", "ValueError", "full", "a"]
