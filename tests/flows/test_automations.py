"""`automations.yaml` on a real server: what it does with a run that was killed, and with one whose rows fail."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

ROOT = Path(__file__).parents[2]
FILE = ROOT / "automations.yaml"


def automations() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["automations"]
    return found


def test_prefect_takes_them_all() -> None:
    crashed, paused = [AutomationCore.model_validate(one) for one in automations()]
    assert crashed.trigger.within.total_seconds() == 90  # type: ignore[union-attr]
    assert paused.trigger.expect == {"trunkline.scoring-run.error-rate-exceeded"}  # type: ignore[union-attr]


def post(api: str, path: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.nightly
@pytest.mark.fault(3)
def test_a_run_that_was_killed_is_crashed_and_one_that_goes_on_is_not(
    prefect_processes: Any, small_job_file: Path, tmp_path: Path
) -> None:
    """45 seconds in the place of 90; all else as the file says."""
    content = automations()
    content[0]["trigger"]["within"] = 45
    file = tmp_path / "automations.yaml"
    file.write_text(yaml.safe_dump({"automations": content}))
    prefect_processes.run(f"prefect automation create --from-file {file}")
    environment = prefect_processes.environment | {"FAILPOINT": "infer.scored:1:hang"}
    command = [sys.executable, "-m", "flows.cli", "score", str(small_job_file)]

    def begin(name: str) -> "subprocess.Popen[bytes]":
        output = ["--output", str(tmp_path / name), "--set", f"name={name}"]
        return subprocess.Popen([*command, *output], cwd=ROOT, env=environment, start_new_session=True)

    def states() -> dict[str, str]:
        runs = post(prefect_processes.api, "flow_runs/filter", {})
        return {one["name"].removeprefix("score-"): one["state_type"] for one in runs}

    def beats() -> int:
        names = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
        return int(post(prefect_processes.api, "events/filter", names)["total"])

    runs = [begin(name) for name in ("alive", "killed")]
    try:
        wait_for(lambda: states() == {"alive": "RUNNING", "killed": "RUNNING"} and beats() >= 2)
        os.killpg(runs[1].pid, signal.SIGKILL)
        wait_for(lambda: states() == {"alive": "RUNNING", "killed": "CRASHED"})
        assert beats() >= 3
    finally:
        for run in runs:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
