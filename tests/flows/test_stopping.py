"""Signals end a process in time, whatever its main thread does with them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys, time
from flows.stopping import stopping

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with it ignored
with stopping(lambda number: os._exit(128 + number), grace=float(sys.argv[1])) as stop:
    if {replaced}:
        signal.signal(signal.SIGTERM, lambda *_: None)
    while True:
        try:
            print("ready", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            if {tidy}:
                stop()
"""


def stopped(signals: list[int], *, grace: float, tidy: bool = False, replaced: bool = False) -> tuple[int, float]:
    """The exit code of a program that is sent the signals, and the seconds that it took to end."""
    program = PROGRAM.format(tidy=tidy, replaced=replaced)
    process = subprocess.Popen([sys.executable, "-c", program, str(grace)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
        started = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        return process.wait(60), time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_tidies_up_leaves_with_the_signals_code(number: signal.Signals) -> None:
    assert stopped([number], grace=600, tidy=True)[0] == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_does_not_is_ended_in_time(number: signal.Signals) -> None:
    code, seconds = stopped([number], grace=1)
    assert code == 128 + number
    assert seconds >= 1


def test_a_second_signal_ends_at_once() -> None:
    assert stopped([signal.SIGINT, signal.SIGTERM], grace=600)[0] == 128 + signal.SIGINT


def test_a_handler_of_somebody_else_is_no_hindrance() -> None:
    assert stopped([signal.SIGTERM], grace=0.5, replaced=True)[0] == 128 + signal.SIGTERM
