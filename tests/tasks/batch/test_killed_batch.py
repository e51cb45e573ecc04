"""kill -9 in a batch: the same command goes on, and scores nothing that was committed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.batch.batch_steps import by_id, lines_of


def run(folder: Path, failpoint: str = "") -> int:
    environment = os.environ | {"FAILPOINT": failpoint, "FAKE_ENGINE_LOG": str(folder / "scored")}
    driver = [sys.executable, "-m", "tests.tasks.batch.kill_driver", str(folder)]
    ended = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode in (0, -9), ended.stderr[-3000:]
    return ended.returncode


@pytest.mark.fault(1)
def test_a_killed_batch_goes_on(tmp_path: Path) -> None:
    for kill in ("requests.staged:1:kill", "infer.done:1:kill", "batch.staged:1:kill"):
        assert run(tmp_path, kill) == -9
        assert not (tmp_path / "out.jsonl").exists()
    assert run(tmp_path) == 0
    scored = (tmp_path / "scored").read_text().split()
    assert len(scored) == len(set(scored)) == 8
    assert sorted(by_id(tmp_path / "out.jsonl")) == [f"r{i}" for i in range(8)]
    assert [line["error"]["line"] for line in lines_of(tmp_path / "errors.jsonl")] == [9, 10]
    left = {path.name for path in (tmp_path / "out.jsonl.run").iterdir()}
    assert left == {".lock", "requests.parquet", "results"}
    assert not list(tmp_path.glob("*.staged"))
