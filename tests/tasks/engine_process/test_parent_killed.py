"""A run that is killed takes its engine with it, whatever that is in the middle of, and leaves no lock held."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.file_lock import hold
from engine.machine.device_turn import DeviceTurn

ROOT = Path(__file__).parents[3]

PARENT = """
import sys
from pathlib import Path
from engine.file_lock import hold
from engine.process.child import Child
from tasks.engine_process.engine_process import EngineProcess
from tests.tasks.engine_process.test_engine_process import CONFIG, FAKE, model, work

with hold(Path(sys.argv[1])):
    child = Child(FAKE)
    with EngineProcess(model(), CONFIG, child=child) as workers:
        workers.start()
        workers.config()
        print(child.pid, flush=True)
        sys.stdin.readline()
        workers.submit(work(1)).result()
"""


def wait_for_end(process: psutil.Process) -> float:
    """Seconds."""
    started = time.monotonic()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - started < 10
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.fault(3)
@pytest.mark.parametrize("state", ["idle", "seized", "stopped"])
def test_the_engine_ends_with_a_run_that_is_killed(tmp_path: Path, state: str) -> None:
    cores = len(os.sched_getaffinity(0))
    environment = os.environ | {
        "TRUNKLINE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": str(cores),
        "FAILPOINT": "engine.step:1:seize",
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PARENT, str(tmp_path / ".lock")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        engine = psutil.Process(int(run.stdout.readline()))
        files = engine.num_fds()
        if state == "seized":
            run.stdin.write("\n")
            run.stdin.flush()
            deadline = time.monotonic() + 10
            while engine.num_fds() < files + 2:  # the pipe that it waits at
                assert time.monotonic() < deadline
                time.sleep(0.01)
        if state == "stopped":
            engine.send_signal(signal.SIGSTOP)
        run.kill()
        run.wait()
        assert wait_for_end(engine) < 2
    with hold(tmp_path / ".lock"):
        turn = DeviceTurn([f"core-{core}" for core in sorted(os.sched_getaffinity(0))])
        turn.take(run, given_up=lambda: True)
        assert turn.waiting_for is None
        turn.give(run)
