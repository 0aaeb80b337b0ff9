"""All that is to be shown on a GPU, in one go: a table for benchmarks/README.md, with the card's name.

    python -m benchmarks.on_gpu PHOTOS -o FOLDER [--steps 300] [--device cuda]

PHOTOS: some dozens of photographs, of which a few are held out. FOLDER gets table.md, the log of every command and
the runs. A command that fails is told in its line of the table and the others go on, since the machine may be
lent. `--device cpu` with few steps tries this program where there is no GPU; its figures tell nothing of one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_sr.bench.machine import bench_device, describe_machine
from ray_sr.training.monitor import read_journal
from ray_sr.upscaling.accelerator import describe_runtime

RAY_SR = (sys.executable, "-m", "ray_sr.cli")
PATIENCE_S = 1800
PORT = 8123


class Failed(Exception):
    """A command that did not end as it should have, with the last line of what it said."""


@dataclass
class Session:
    """Where results go, and what was measured: rows of (what, figure, what is wanted)."""

    photos: Path
    output: Path
    steps: int
    device: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def training(self) -> str:
        return f"training.device={'cpu' if self.device == 'cpu' else 'gpu'}"

    @property
    def shards(self) -> str:
        return str(self.output / "shards")

    def add(self, what: str, figure: object, wanted: str = "") -> None:
        self.rows.append((what, str(figure), wanted))

    def run(self, *arguments: object, expected: tuple[int, ...] = (0,)) -> str:
        """What a command says on stdout; all that it says is kept in a log."""
        with self.begin(*arguments) as process:
            try:
                out, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()  # nothing where it has ended
        return self.checked(process, out, expected)

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        words = [str(word) for word in arguments]
        print("+", *words, file=sys.stderr, flush=True)
        self.log = self.output / f"{len(list(self.output.glob('*.log'))):02}.log"
        log = self.log.open("w")
        log.write(f"+ {' '.join(words)}\n")
        log.flush()
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0)

    def checked(self, process: subprocess.Popen[str], out: str, expected: tuple[int, ...]) -> str:
        with self.log.open("a") as log:
            log.write(out)
        if process.returncode not in expected:
            last = [line for line in self.log.read_text().splitlines() if line.strip()][-1]
            raise Failed(f"exit code {process.returncode} ({self.log.name}): {last}")
        return out

    def json(self, *arguments: object) -> Any:
        return json.loads(self.run(*RAY_SR, *arguments, "--json"))


def doctor(session: Session) -> None:
    facts = session.json("doctor")
    session.add("doctor", f"{', '.join(facts['gpus']) or 'no GPU'}; {facts['gpu_runtime']}")


def tests(session: Session) -> None:
    said = session.run(sys.executable, "-m", "pytest", "-o", "addopts=", "tests/gpu")
    summary = said.splitlines()[-1]
    session.add("tests/gpu", summary.strip("= "), "all pass")


def steps(session: Session) -> None:
    for options in ([], ["--compile"]):
        found = session.json("bench", "step", "--batch", 16, "--device", session.device, *options)
        for stage in ("pretrain", "gan"):
            name = f"bench step --batch 16 {' '.join(options)}".strip()
            session.add(f"{name}: {stage}", f"{found[f'{stage}_step_s']:.4f} s, {_ratio(found['speedup'][stage])}")


def upscaling(session: Session) -> None:
    found = session.json("bench", "upscale", "--size", 1024, 1024, "--device", session.device)
    for name, result in found.items():
        session.add(f"bench upscale: {name}", f"{result['mpx_per_s']:.1f} Mpx/s, {_ratio(result['speedup'])}")


def evaluation(session: Session) -> None:
    given = ("evaluate", "light-x4", "--hr", session.photos, "--device")
    ours, theirs = (session.json(*given, device)["mean"]["psnr_y"] for device in (session.device, "cpu"))
    session.add("evaluate light-x4, PSNR-Y less that of a CPU", f"{ours - theirs:+.4f} dB", "within 0.01 dB")


def pretraining(session: Session) -> None:
    for number, tf32 in enumerate(("true", "false")):
        run = session.output / f"pretrain-{number}"
        change = (f"pretrain.steps={session.steps}", f"training.tf32={tf32}", session.training)
        session.run(*RAY_SR, "train", "-c", "srresnet-x4", "--data", session.shards, "-o", run, *change)
        session.add(f"srresnet-x4, {session.steps} steps, tf32={tf32}", *_pace(run))


def gan(session: Session) -> None:
    """Interrupted after the first line of the log, gone on with, and gone on with on a CPU."""
    run, count = session.output / "gan", max(2, session.steps * 2 // 3)
    changes = ("training.log_every=1", "gan.schedule={kind: constant}")
    given = (*RAY_SR, "train", "-c", "light-gan-x4", "--data", session.shards, "-o", run, *changes)
    process = session.begin(*given, f"gan.steps={count}", session.training)
    try:
        _wait_for(lambda: process.poll() is not None or bool(_lines(run, "train")))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    session.checked(process, out, (130,))
    for more, device in ((0, session.training), (2, "training.device=cpu")):
        session.run(*given, f"gan.steps={count + more}", device, "--resume")
        last = _lines(run, "train")[-1]["step"]
        session.add(f"light-gan-x4, --resume {device}", f"went on to step {last}", f"{count + more}")


def serving(session: Session) -> None:
    url = f"http://127.0.0.1:{PORT}"
    process = session.begin(*RAY_SR, "serve", "-n", "best", "-n", "bicubic", "--port", PORT)
    try:
        _wait_for(lambda: process.poll() is not None or _is_ready(url))
        found = session.json("bench", "http", url, "--seconds", 10)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    bad = sum(
        number
        for load in found["loads"]
        for status, number in load["statuses"].items()
        if status.startswith("5") and status != "503"
    )
    session.add(
        "serve and bench http", f"{found['highest_rate']:.1f}/s with p99 within {found['p99_bound_ms']:g} ms"
    )
    session.add("answers that are errors of the service", bad, "0")


PARTS: dict[str, Callable[[Session], None]] = {
    part.__name__: part for part in (doctor, tests, steps, upscaling, evaluation, pretraining, gan, serving)
}


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['lower']:.2f} to {found['upper']:.2f}) times the plain loop"


def _lines(run: Path, event: str) -> list[dict[str, Any]]:
    journal = run / "metrics.jsonl"
    return read_journal(journal, lambda record: record.get("event") == event) if journal.exists() else []


def _pace(run: Path) -> tuple[str, str]:
    """Steps/s and the share of waiting after the first log line, which holds the start."""
    lines = _lines(run, "train")
    last = lines[-1]
    return f"{last['steps_per_s']:.2f} steps/s, waits for data {last['data_wait']:.1%}", "below 20 %"


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"nothing came within {PATIENCE_S} s")
        time.sleep(0.5)


def table(session: Session) -> str:
    title = describe_machine(bench_device(session.device))
    lines = [f"{title}; {describe_runtime()}", "", "| | measured | wanted |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in session.rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    bench_device(options.device)  # ends here where there is none
    options.output.mkdir(parents=True, exist_ok=True)
    session = Session(options.photos, options.output, options.steps, options.device)
    if not {"pretraining", "gan"}.isdisjoint(options.only) and not os.path.exists(session.shards):
        session.run(*RAY_SR, "data", "prepare", options.photos, "-o", session.shards)
    for name in options.only:
        try:
            PARTS[name](session)
        except (Failed, subprocess.TimeoutExpired, KeyError, ValueError) as error:
            session.add(name, f"failed: {error}", "done")
        (options.output / "table.md").write_text(table(session))
    print(table(session))
    if any(figure.startswith("failed") for _, figure, _ in session.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
