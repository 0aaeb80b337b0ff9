"""The monitor between workers and driver, without Ray: its methods as the actor runs them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ray_sr.training.monitor import Journal, _Monitor, read_journal


def test_a_checkpoint_waits_for_the_lines_before_it_only() -> None:
    """Steps that log all the time, faster than the driver writes, do not keep checkpoints from being written."""

    async def run() -> tuple[list[int], int]:
        monitor = _Monitor()
        written: list[int] = []
        for step in range(5):
            await monitor.log({"event": "train", "step": step})
        waiting = asyncio.create_task(monitor.written())
        turns = 0
        while not waiting.done():
            turns += 1
            assert turns < 50
            for record in await monitor.drain(1.0):
                if record["event"] == "train":
                    written.append(record["step"])
                await monitor.log({"event": "train", "step": 5 + len(written)})  # there is always some
            await asyncio.sleep(0.03)
        return written, turns

    written, turns = asyncio.run(run())
    assert written[:5] == [0, 1, 2, 3, 4]
    assert turns <= 4


def test_drain_returns_at_once_or_after_its_time() -> None:
    async def run() -> tuple[list[object], list[object], bool]:
        monitor = _Monitor()
        empty = await monitor.drain(0.05)
        later = asyncio.create_task(monitor.drain(30.0))
        await asyncio.sleep(0.05)
        await monitor.log({"event": "error", "step": 1})
        await monitor.stop()
        return empty, await asyncio.wait_for(later, 5), await monitor.stopping() and await monitor.refused()

    assert asyncio.run(run()) == ([], [{"event": "error", "step": 1}], True)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\0\x9c", bytes(200), b'{"event": "tra', b"3", b"null", b"[1, 2]", b"{}"]
)
def test_damaged_lines_of_a_journal_are_left_out(damage: bytes, tmp_path: Path) -> None:
    """As a machine without power leaves them: the others count, and a run goes on behind them."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"event": "train", "step": 1}\n' + damage + b'\n{"event": "train", "step": 2}\n' + damage)
    assert [record["step"] for record in read_journal(file)] == [1, 2]
    journal = Journal(file)
    journal.write({"event": "start", "step": 1})
    journal.close()
    assert [(record["event"], record["step"]) for record in read_journal(file)] == [("train", 1), ("start", 1)]
