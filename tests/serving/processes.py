"""The processes of a running service, found by what they call themselves, and what they take."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replicas(application: str, deployment: str) -> list[int]:
    """Process ids of a deployment's replicas."""
    title = f"ray::ServeReplica:{application}:{deployment}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(title):
                found.append(int(folder.name))
    return found


def codecs(ingress: int) -> list[int]:
    """Process ids of the codec processes of an ingress."""
    found = []
    for task in Path(f"/proc/{ingress}/task").iterdir():
        with suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"codec_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
