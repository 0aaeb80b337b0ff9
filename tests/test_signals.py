"""What a process does when it is asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from ray_sr.signals import ENDING, answer_signals, ending_gently


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_is_answered_in_the_block_alone(number: signal.Signals) -> None:
    before, heard = signal.getsignal(number), []
    with ending_gently(lambda: heard.append(number)):
        os.kill(os.getpid(), number)
    assert heard == [number]
    assert signal.getsignal(number) is before


def test_the_former_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with pytest.raises(ZeroDivisionError), ending_gently(lambda: None):
        _ = 1 / 0
    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal\n"
        "from ray_sr.signals import ending_gently\n"
        "with ending_gently(lambda: print('saving', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('going on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "saving\ngoing on\n", "")


def test_what_is_ignored_stays_ignored_but_for_ctrl_c() -> None:
    """nohup ignores SIGHUP; a shell without job control lets its background jobs ignore Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        restore = answer_signals(lambda: None)
        after = {number for number in ENDING if signal.getsignal(number) is signal.SIG_IGN}
        restore()
        assert after == {signal.SIGTERM, signal.SIGHUP}
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in ENDING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_other_threads_leave_signals_alone() -> None:
    before, entered = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with ending_gently(lambda: None):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [before]
