"""kill -9 at every place where it could matter."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("first", [1, 2])
def test_killed_at_each_failpoint_and_again_while_it_recovers(first: int, tmp_path: Path) -> None:
    driver = [sys.executable, "-m", "tests.tasks.kill_driver", str(tmp_path), str(first), "2"]
    ended = subprocess.run(driver, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) > 15
