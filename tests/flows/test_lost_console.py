"""A console that ends before the run does."""

import subprocess
import sys

PROGRAM = """
import logging, sys
from prefect.logging.handlers import PrefectConsoleHandler
from flows.lost_console import outlive_console
logger = logging.getLogger("prefect.lost_console")
logger.addHandler(PrefectConsoleHandler(sys.stderr))
logger.propagate = False
logger.setLevel(logging.INFO)
if sys.argv[1] == "outlive":
    outlive_console()
print("ready", flush=True)
sys.stdin.read()
logger.info("one")
logger.info("two")
print("three", file=sys.stderr, flush=True)
print("done", flush=True)
"""


def said_by(how: str) -> str:
    """What the program says on its output when nobody reads its console."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM, how], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "ready\n"
        run.stderr.close()
        run.stdin.close()
        return run.stdout.read()


def test_a_run_outlives_its_console() -> None:
    assert said_by("outlive") == "done\n"


def test_rich_would_end_it() -> None:
    assert said_by("") == ""
