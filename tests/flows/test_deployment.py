"""A real server, a real worker: the commands of the README, with a small job in the place of the example."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint

from flows.score import score
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records

ROOT = Path(__file__).parents[2]


def deployments() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return content


def test_the_deployed_job_is_the_example() -> None:
    deployed = deployments()["deployments"][0]
    assert deployed["parameters"] == {"job": "examples/classify.yaml"}
    assert load_flow_from_entrypoint(deployed["entrypoint"]) is score
    assert score.validate_parameters(deployed["parameters"])["job"] == "examples/classify.yaml"


def test_a_deployment_may_hold_the_jobs_keys_themselves(small_job: dict[str, Any]) -> None:
    assert score.validate_parameters({"job": small_job})["job"] == parse_job(small_job, "test")
    with pytest.raises(ParameterTypeError, match="sourc"):
        score.validate_parameters({"job": small_job | {"sourc": 1}})


@pytest.fixture
def small_deployment(tmp_path: Path, small_job_file: Path) -> Path:
    """prefect.yaml with the small job, and everything else as it stands there."""
    content = deployments()
    content["deployments"][0]["parameters"]["job"] = str(small_job_file)
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read(api: str, path: str) -> Any:
    with urllib.request.urlopen(f"{api}/{path}", timeout=30) as answer:
        return json.load(answer)


@pytest.mark.nightly
def test_a_run_in_a_worker_is_stopped_from_outside(
    prefect_processes: Any,
    small_deployment: Path,
    small_job: dict[str, Any],
    small_job_file: Path,
    tmp_path: Path,
    write_table: Any,
) -> None:
    """Prefect has it as cancelled, not as crashed, and the worker goes on."""
    small_job |= {
        "task": {"type": "generate"},
        "sampling": {"max_tokens": 40, "ignore_eos": True},
        "shard_seconds": 0.1,
    }
    small_job_file.write_text(yaml.safe_dump(small_job))
    write_table(tmp_path / "rows.parquet", 2000)
    run, folder = prefect_processes.run, OutputFolder(Path(small_job["output"]))
    run("prefect work-pool create trunkline --type process --overwrite")
    run("prefect --no-prompt deploy --all", "--prefect-file", str(small_deployment))
    with prefect_processes.started("prefect worker start --pool trunkline"):
        run("prefect deployment run trunkline-score/package-topics")
        deadline = time.monotonic() + 600  # other runs on this machine may have the device
        while not read_manifests(folder):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        said = run(f"trunkline stop {folder.root}")
        [record] = read_records(folder)
        assert record.status == "stopped"
        assert f"{record.run_id} stopped; {record.rows_done:,} of 2,000 rows are done" in said
        while (state := last_state(prefect_processes.api)) == "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert state == "CANCELLED"
        time.sleep(5)  # the worker looks at how the process ended
        assert last_state(prefect_processes.api) == "CANCELLED"


def last_state(api: str) -> str:
    wanted = {"sort": "START_TIME_DESC", "limit": 1}
    request = urllib.request.Request(
        f"{api}/flow_runs/filter", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)[0]["state_type"])


def scored_now(folder: Path) -> list[int]:
    """Requests of each run's shards, in the order of the runs."""
    statement = "select sum(requests)::int as n from shards group by run_id order by run_id"
    with query(folder, statement) as result:
        numbers: list[int] = result.table()["n"].to_pylist()
        return numbers


def test_a_scheduled_run_scores_new_rows_only(
    prefect_processes: Any, small_deployment: Path, small_job: dict[str, Any], tmp_path: Path, write_table: Any
) -> None:
    run = prefect_processes.run
    run("prefect work-pool create trunkline --type process")
    assert "telemetry" not in (prefect_processes.folder / "server.log").read_text()
    run("prefect --no-prompt deploy --all", "--prefect-file", str(small_deployment))
    assert "Created 2 automation(s)" in run("prefect automation create --from-file automations.yaml")

    deployed = read(prefect_processes.api, "deployments/name/trunkline-score/package-topics")
    assert [(s["slug"], s["schedule"]["cron"], s["active"]) for s in deployed["schedules"]] == [
        ("every-night", "0 5 * * *", True)
    ]
    assert deployed["global_concurrency_limit"]["limit"] == 1
    folder = Path(small_job["output"])
    with prefect_processes.started("prefect worker start --pool trunkline"):
        run("prefect deployment run trunkline-score/package-topics", "--watch", "--watch-timeout", "180")
        with query(folder, "select (select count(*) from results) as r, (select count(*) from errors) as e") as result:
            assert result.table().to_pylist() == [{"r": 20, "e": 1}]
        assert scored_now(folder) == [20]

        write_table(tmp_path / "rows.parquet", 25)
        run("prefect deployment run trunkline-score/package-topics", "--watch", "--watch-timeout", "180")
        # The first run's process has ended by now, and has said nothing of what it could not free.
        assert "nanobind" not in (prefect_processes.folder / "worker.log").read_text()
    with query(folder, "select custom_id from results union select custom_id from errors") as result:
        assert len(result.table()) == 25
    # Row 20 had no prompt the first time; rows 21 to 23 are new; row 24 has none.
    assert scored_now(folder) == [20, 4]
