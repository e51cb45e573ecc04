"""kill -9 at random moments of runs on a model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.fault(1, 2, 3)
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.nightly)])
def test_no_row_is_lost_doubled_or_changed(kills: int) -> None:
    command = [sys.executable, "-m", "tests.tasks.kill_at_random", "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    [(made, hits)] = re.findall(r"^(\d+) kills, (\d+) of them in work in progress", done.stdout)
    assert int(made) == kills
    assert int(hits) > kills / 2
