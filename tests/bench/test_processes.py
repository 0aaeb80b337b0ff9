"""What the benchmarks read of processes is what these do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import processes


def test_processes_and_what_they_take() -> None:
    program = "import sys; held = bytearray(64 << 20); print('here', flush=True); sys.stdin.read(1)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in processes.tree(os.getpid())
        assert 64 << 20 < processes.own_bytes(child.pid) < 96 << 20
        assert processes.cpu_s(child.pid) > 0
        assert processes.name_of(child.pid).startswith("python")
        child.communicate(b"x")
    assert processes.own_bytes(child.pid) == processes.cpu_s(child.pid) == 0
    with pytest.raises(OSError, match="No such file"):
        processes.name_of(child.pid)
