"""Fair turns, medians and ratios."""

from __future__ import annotations

import time

import pytest
import torch
from click.testing import CliRunner

from ray_sr.bench.machine import Bench, Times, describe_machine
from ray_sr.cli import cli

CPU = torch.device("cpu")


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = Bench(CPU, rounds=3).take_turns(contenders, lambda: order.append("|"))
    assert "".join(order) == "ab|ab|ab|ab|"
    assert [len(values) for values in times.seconds.values()] == [3, 3]


def test_the_cpu_clock_counts_work_and_not_waiting() -> None:
    contenders = {"waits": lambda: time.sleep(0.05), "works": lambda: sum(range(1_000_000))}
    times = Bench(CPU, rounds=1, clock="cpu").take_turns(contenders)
    assert times.median("waits") < 0.02
    assert times.median("waits") < times.median("works")


def test_ratios_are_taken_round_by_round() -> None:
    """One slow round of both changes neither median nor quartiles."""
    times = Times({"ours": [1.0, 10.0, 1.0, 1.0, 1.0], "plain": [2.0, 20.0, 2.0, 3.0, 2.0]})
    assert times.median("ours") == 1.0
    assert times.speedup("ours", "plain") == {"median": 2.0, "lower": 2.0, "upper": 2.0}
    assert Times({"ours": [2.0], "plain": [5.0]}).speedup("ours", "plain")["lower"] == 2.5


def test_the_machine_is_described_in_one_line() -> None:
    text = describe_machine(CPU)
    assert "\n" not in text
    assert f"torch {torch.__version__}" in text
    assert "bf16" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_exit_code_4() -> None:
    done = CliRunner().invoke(cli, ["bench", "upscale", "--device", "cuda"])
    assert getattr(done.exception, "exit_code", None) == 4
