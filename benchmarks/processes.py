"""The processes of a service, and what they take, from /proc."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and all that it started, and those did."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            children.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds so far of a process and of its children that ended; 0 where it is gone."""
    try:
        return sum(int(ticks) for ticks in _stat(pid)[11:15]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def own_bytes(pid: int) -> int:
    """Memory that a process shares with nobody (RssAnon), as Ray's object store is; 0 where it is gone."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def name_of(pid: int) -> str:
    """What a process is to the service: a replica is `application:deployment`. Raises OSError where it is gone."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    if "codec_process" in command:
        return "codecs"
    if title := re.match(r"ray::(?:ServeReplica:)?([\w:-]+)", command):
        return title[1]
    return Path(command.split(" ", 1)[0]).name
