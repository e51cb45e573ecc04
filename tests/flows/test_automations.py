"""`automations.yaml` on a real server: what it does with a run that was killed, and with one whose rows fail."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from flows.dataset import asset_key
from tests.flows.prefect_api import get, post, wait_for

ROOT = Path(__file__).parents[2]
FILE = ROOT / "automations.yaml"


def automations() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["automations"]
    return found


def test_prefect_takes_them_all() -> None:
    crashed, paused = [AutomationCore.model_validate(one) for one in automations()]
    assert crashed.trigger.within.total_seconds() == 90  # type: ignore[union-attr]
    assert paused.trigger.expect == {"trunkline.scoring-run.error-rate-exceeded"}  # type: ignore[union-attr]


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


@pytest.mark.nightly
def test_a_deployment_whose_rows_fail_too_often_is_paused(prefect_processes: Any, tmp_path: Path) -> None:
    """The event as a flow run of that deployment sends it: Prefect adds the run's deployment to what is related."""
    run, api = prefect_processes.run, prefect_processes.api
    run("prefect automation create --from-file automations.yaml")
    run("prefect work-pool create trunkline --type process --overwrite")
    run("prefect --no-prompt deploy --all")

    def deployment() -> Any:
        return get(api, "deployments/name/trunkline-score/nightly")

    assert not deployment()["paused"]
    event = {
        "event": "trunkline.scoring-run.error-rate-exceeded",
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": asset_key(tmp_path)},
        "related": [
            {
                "prefect.resource.id": f"prefect.deployment.{deployment()['id']}",
                "prefect.resource.role": "deployment",
            }
        ],
    }
    post(api, "events", [event])
    wait_for(lambda: bool(deployment()["paused"]))
