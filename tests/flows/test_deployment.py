"""prefect.yaml, a real server, a real worker: the pages' commands, with a small job in the place of the example."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from engine.errors import UserError
from flows.score import score
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records
from tests.flows.prefect_api import get, last_run, post, wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "schedule.md"
DEPLOYMENTS: dict[str, Any] = {
    one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
}
EXAMPLE = "examples/classify.yaml"


def test_the_deployments_are_these() -> None:
    assert list(DEPLOYMENTS) == ["nightly", "ad-hoc", "retry-failed"]
    assert DEPLOYMENTS["nightly"]["parameters"] == {"job": EXAMPLE, "wait": 21600}
    assert DEPLOYMENTS["ad-hoc"]["parameters"] == {"wait": 21600}
    assert DEPLOYMENTS["retry-failed"]["parameters"] == {"job": EXAMPLE, "retry_failed": True, "wait": 21600}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_runs_the_public_flow(name: str) -> None:
    deployed = DEPLOYMENTS[name]
    assert load_flow_from_entrypoint(deployed["entrypoint"]) is score
    given = {"job": EXAMPLE} | deployed["parameters"]
    assert score.validate_parameters(given).items() >= given.items()


def test_a_deployment_may_hold_the_jobs_keys_themselves(small_job: dict[str, Any]) -> None:
    assert score.validate_parameters({"job": small_job})["job"] == parse_job(small_job, "test")
    with pytest.raises(UserError, match=r"^job: sourc: unknown key; did you mean source\?$"):
        score.validate_parameters({"job": small_job | {"sourc": 1}})


def without_help(schema: dict[str, Any], definitions: dict[str, Any], name: str) -> Iterator[str]:
    """Dotted names of what the form shows without a word about it; a group of keys may have its own words."""
    for key, field in schema.get("properties", {}).items():
        references = [one["$ref"] for part in ("anyOf", "allOf") for one in field.get(part, ()) if "$ref" in one]
        references += [field["$ref"]] if "$ref" in field else []
        groups = [definitions[reference.rpartition("/")[2]] for reference in references]
        if not any(one.get("description") for one in (field, *groups)):
            yield f"{name}{key}"
        for group in groups:
            yield from without_help(group, definitions, f"{name}{key}.")


def test_the_form_explains_every_parameter() -> None:
    schema = score.parameters.model_dump_for_openapi()
    assert list(schema["properties"]) == ["job", "retry_failed", "full", "wait"]
    assert all(field["description"] for field in schema["properties"].values())
    assert len(schema["definitions"]) >= 10
    assert list(without_help(schema, schema["definitions"], "")) == []
    schema["definitions"]["EngineLimits"]["properties"]["order"].pop("description")
    assert list(without_help(schema, schema["definitions"], "")) == ["job.engine.order"]


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
    run, folder, api = prefect_processes.run, OutputFolder(Path(small_job["output"])), prefect_processes.api
    run("prefect work-pool create trunkline --type process --overwrite")
    run("prefect --no-prompt deploy --all", "--prefect-file", str(small_deployment))
    with prefect_processes.started("prefect worker start --pool trunkline"):
        run("prefect deployment run trunkline-score/nightly")
        wait_for(lambda: bool(read_manifests(folder)), 600)  # other runs on this machine may have the device
        said = run(f"trunkline stop {folder.root}")
        [record] = read_records(folder)
        assert record.status == "stopped"
        assert f"{record.run_id} stopped; {record.rows_done:,} of 2,000 rows are done" in said
        wait_for(lambda: bool(last_run(api)["state_type"] != "RUNNING"), 600)
        assert last_run(api)["state_type"] == "CANCELLED"
        time.sleep(5)  # the worker looks at how the process ended
        assert last_run(api)["state_type"] == "CANCELLED"


@pytest.mark.nightly
def test_the_flow_is_served_as_the_page_says(
    prefect_processes: Any, small_job_file: Path, small_job: dict[str, Any]
) -> None:
    [program] = [one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "serve" in one]
    wanted = {"deployments": {"name": {"any_": ["served"]}}}
    with prefect_processes.started("python -c", program):
        wait_for(lambda: bool(post(prefect_processes.api, "deployments/filter", wanted)))
        given = ("--param", f"job={small_job_file}")
        prefect_processes.run("prefect deployment run trunkline-score/served", *given, "--watch")
    assert scored_now(Path(small_job["output"])) == [20]


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

    deployed = {name: get(prefect_processes.api, f"deployments/name/trunkline-score/{name}") for name in DEPLOYMENTS}
    assert [(s["slug"], s["schedule"]["cron"], s["active"]) for s in deployed["nightly"]["schedules"]] == [
        ("every-night", "0 5 * * *", True)
    ]
    assert deployed["ad-hoc"]["schedules"] == deployed["retry-failed"]["schedules"] == []
    limits = {name: one["global_concurrency_limit"] for name, one in deployed.items()}
    assert limits["ad-hoc"] is None
    assert limits["nightly"]["limit"] == limits["retry-failed"]["limit"] == 1
    folder = Path(small_job["output"])
    with prefect_processes.started("prefect worker start --pool trunkline"):
        run("prefect deployment run trunkline-score/nightly", "--watch", "--watch-timeout", "180")
        with query(folder, "select (select count(*) from results) as r, (select count(*) from errors) as e") as result:
            assert result.table().to_pylist() == [{"r": 20, "e": 1}]
        assert scored_now(folder) == [20]

        write_table(tmp_path / "rows.parquet", 25)
        run("prefect deployment run trunkline-score/nightly", "--watch", "--watch-timeout", "180")
        # The first run's process has ended by now, and has said nothing of what it could not free.
        assert "nanobind" not in (prefect_processes.folder / "worker.log").read_text()
    with query(folder, "select custom_id from results union select custom_id from errors") as result:
        assert len(result.table()) == 25
    # Row 20 had no prompt the first time; rows 21 to 23 are new; row 24 has none.
    assert scored_now(folder) == [20, 4]
