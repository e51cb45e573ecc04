"""What Prefect is told of a run: its dataset as an asset, its end as an event, and no text of any row."""

import json
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from prefect.assets import Asset
from prefect.settings import PREFECT_API_URL

from engine.plan import ShardWork
from flows.dataset import asset_key
from flows.score import ShardsFailedError, score
from flows.workers import workers_from
from tasks.job.job import ScoringJob
from tasks.job.job_file import parse_job
from tasks.run_failed import TooManyErrorsError
from tests.tasks.fakes import FakeWorkers


class Failing(FakeWorkers):
    def submit(self, work: ShardWork, *_: Any) -> Any:
        raise ValueError("The parcel came late")


@pytest.fixture
def job(small_job: dict[str, Any]) -> ScoringJob:
    return parse_job(small_job | {"name": "told"}, "test")


def events(key: str, name: str) -> list[dict[str, Any]]:
    """Those of this name about the resource, once the server has one: they come a moment later."""
    wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [key]}}}
    request = urllib.request.Request(
        f"{PREFECT_API_URL.value()}/events/filter", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["events"]
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"no {name} about {key}")


@pytest.mark.fault(25)
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_completes(job: ScoringJob) -> None:
    with workers_from(lambda _: nullcontext(FakeWorkers())):
        report = score(job)
    key = asset_key(job.output_folder)
    [made] = events(key, "prefect.asset.materialization.succeeded")
    published = report.published
    assert made["resource"]["prefect.resource.name"] == "told"
    assert made["payload"] == {
        "job": "told",
        "run_id": report.run_id,
        "model": made["payload"]["model"],
        "model_fingerprint": made["payload"]["model_fingerprint"],
        "rows": 21,
        "results": 20,
        "errors": 1,
        "missing": 0,
        "prompt_tokens": published.prompt_tokens,
        "unique_prompt_tokens": published.unique_prompt_tokens,
        "computed_prompt_tokens": published.computed_prompt_tokens,
        "saved_tokens": published.unique_prompt_tokens - published.computed_prompt_tokens,
        "saved_fraction": published.saved_fraction,
    }
    roles = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in made["related"]}
    assert roles["asset-materialized-by"] == "trunkline"
    assert roles["asset"] == asset_key(job.output_folder.parent / "rows.parquet")
    assert "flow-run" in roles

    [ended] = events(key, "trunkline.scoring-run.completed")
    told = ended["payload"]
    assert (told["run_id"], told["rows"], told["rows_done"], told["row_errors"]) == (report.run_id, 21, 21, 1)
    for event in (made, ended):
        assert "parcel" not in json.dumps(event)


@pytest.mark.fault(25)
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_fails_says_the_kind_of_its_error_alone(job: ScoringJob) -> None:
    with workers_from(lambda _: nullcontext(Failing())), pytest.raises(ShardsFailedError):
        score(job)
    [ended] = events(asset_key(job.output_folder), "trunkline.scoring-run.failed")
    told = ended["payload"]
    assert (told["cause"], told["rows"], told["rows_done"], told["row_errors"]) == ("ShardsFailedError", 21, 1, 1)
    assert "parcel" not in json.dumps(ended)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_with_more_errors_than_it_may_have(small_job: dict[str, Any]) -> None:
    job = parse_job(small_job | {"max_error_rate": 0.01}, "test")
    with workers_from(lambda _: nullcontext(FakeWorkers())), pytest.raises(TooManyErrorsError):
        score(job)
    for name in ("failed", "error-rate-exceeded"):
        [ended] = events(asset_key(job.output_folder), f"trunkline.scoring-run.{name}")
        assert (ended["payload"]["rows"], ended["payload"]["row_errors"]) == (21, 1)


@pytest.mark.parametrize(
    "path",
    ["/data/runs/a", "/data/a b/é", "/data/100%", "/data/[x]{y}|^`<>\"'#?&\\\n\t", "/" + "long/" * 200, "/\udcff"],
)
def test_any_folder_has_a_key_that_prefect_takes(path: str) -> None:
    key = asset_key(Path(path))
    assert Asset(key=key).key == key
    assert key.encode()
    assert (key == f"file://{path}") is (path == "/data/runs/a")


def test_two_folders_have_two_keys() -> None:
    paths = ["/a b", "/a-b", "/a%b", "/a?b", "/" + "long/" * 200 + "1", "/" + "long/" * 200 + "2"]
    assert len({asset_key(Path(path)) for path in paths}) == len(paths)
