"""kill -9 at every place where it could matter, of choices and texts beside each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks"


def named() -> set[str]:
    """The failpoints of a run's steps; those of batch files have a driver of their own."""
    files = [path for path in TASKS.rglob("*.py") if TASKS / "batch" not in path.parents]
    return {name for path in files for name in re.findall(r'failpoint\("([\w.]+)"\)', path.read_text())}


# Where a run that takes up another's plan is not: nothing is read or planned again.
NOT_AGAIN = {"snapshot.copied", "extract.batch", "extract.done", "deduplicate.start", "deduplicate.done", "plan.start"}
NOT_AGAIN |= {"plan.staged", "plan.renamed"}


@pytest.mark.fault(1, 6)
@pytest.mark.parametrize("scenario", ["fresh", "resumed", "retried"])
def test_killed_at_each_failpoint_and_again_while_it_recovers(scenario: str, tmp_path: Path) -> None:
    driver = [sys.executable, "-m", "tests.tasks.kill_driver", str(tmp_path), scenario]
    ended = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert set(ended.stdout.split()) == named() - (NOT_AGAIN if scenario == "resumed" else set())
