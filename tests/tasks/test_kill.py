"""kill -9 at every place where it could matter, of choices and texts beside each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks"


def named() -> set[str]:
    """The failpoints of a run's steps; those of batch files and of buckets have a driver of their own."""
    others = (TASKS / "storage" / "bucket_folder.py", TASKS / "storage" / "lease.py", TASKS / "batch")
    files = [path for path in TASKS.rglob("*.py") if not any(path.is_relative_to(other) for other in others)]
    return {name for path in files for name in re.findall(r'failpoint\("([\w.]+)"\)', path.read_text())}


# A run that takes up another's plan neither reads nor plans, and one that tries errors again finds none in the store.
NOT_HIT = {
    "fresh": set(),
    "resumed": {"snapshot.copied", "extract.batch", "extract.done", "deduplicate.start", "deduplicate.done"}
    | {"plan.start", "plan.staged", "plan.renamed", "store.taken", "store.committed"},
    "retried": {"store.committed", "checkpoint.start", "checkpoint.done", "checkpoint.removed"},
}


@pytest.mark.fault(1, 6)
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "scenario", ["fresh", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("resumed", "retried"))]
)
def test_killed_at_each_failpoint_and_again_while_it_recovers(scenario: str, tmp_path: Path) -> None:
    driver = [sys.executable, "-m", "tests.tasks.kill_driver", str(tmp_path), scenario]
    ended = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert set(ended.stdout.split()) == named() - NOT_HIT[scenario]
