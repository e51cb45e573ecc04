"""Ctrl-C at any moment: before DuckDB's thread begins, while it does, and between its looks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
# A program of its own, whose alarm is the user's key: tests have an alarm already. Pressed again if it was not heard.
PROGRAM = """
import signal, sys
import duckdb
from tasks.storage.interruptible import interruptible

def pressed(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, pressed)
heard = 0
for moment in range(int(sys.argv[1])):
    connection = duckdb.connect()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-5 * 1.08**moment, 0.5)
        interruptible(connection, lambda: connection.execute("select count(*) from range(1000000000000000)").fetchall())
    except KeyboardInterrupt:
        heard += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    connection.close()  # which is refused while a call goes on
print(heard)
"""


def test_ctrl_c_is_heard_at_any_moment() -> None:
    """A future and a pool hung at one moment in some hundred, and left the query behind at others."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "80"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "80\n"), done.stderr[-2000:]
