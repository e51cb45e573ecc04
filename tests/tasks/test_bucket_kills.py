"""kill -9 of a run into a bucket at every place where it could matter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.test_kill import ROOT, TASKS

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")


@pytest.mark.nightly
@pytest.mark.fault(1, 3, 6)
def test_killed_at_each_failpoint_and_continued_here_and_elsewhere(s3_url: str, tmp_path: Path) -> None:
    driver = [sys.executable, "-m", "tests.tasks.bucket_kills", str(tmp_path), f"{s3_url}/kills"]
    ended = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    files = [TASKS / "storage" / name for name in ("bucket_folder.py", "lease.py")]
    named = {name for file in files for name in re.findall(r'failpoint\("([\w.]+)"\)', file.read_text())}
    # A first run has nothing to remove: its checkpoints are its shards.
    assert set(ended.stdout.split()) >= named - {"bucket.removed"}
