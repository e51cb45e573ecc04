"""A finished run's page in Prefect, as a browser shows it: what the run left there, and no complaint of the page's."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Opened, opened
from tests.flows.prefect_api import last_run, post

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]

# Seconds of the page's own clock, which stands while it waits for the server.
PATIENT = ("--virtual-time-budget=30000", "--window-size=1400,1600")
# What is said of a machine without a GPU, and of the graph that Prefect draws: a library of its own, in several lines.
NOT_OURS = re.compile(r"WebGL|PixiJS|console\.groupEnd|^\s+at ")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A browser's profile, and its screenshots."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture
def run_id(prefect_processes: Any, small_job_file: Path) -> str:
    """Of a run of 21 rows, one of which is an error."""
    assert "21 (20 results, 1 errors)" in prefect_processes.run(f"trunkline score {small_job_file}")
    run = last_run(prefect_processes.api)
    assert run["state_type"] == "COMPLETED"
    return str(run["id"])


def text_of(page: Opened) -> str:
    """What the page says, without its tags."""
    plain = re.sub(r"<(script|style|svg)\b.*?</\1>|<[^>]*>", " ", page.document, flags=re.DOTALL)
    return " ".join(unescape(plain).split())


def complaints(page: Opened) -> list[str]:
    said = re.findall(r'CONSOLE:\d+\] "(.*?)", source: ', page.logged, re.DOTALL)
    return [one for one in said if not NOT_OURS.search(one)]


def test_the_runs_page_shows_what_the_run_left(
    prefect_processes: Any, run_id: str, small_job: dict[str, Any], places: Path
) -> None:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    artifacts = {one["key"]: one["id"] for one in post(prefect_processes.api, "artifacts/filter", wanted)}
    assert sorted(artifacts) == [f"trunkline-small-{what}" for what in ("errors", "progress", "report", "summary")]
    steps = post(prefect_processes.api, "task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    assert {one["name"] for one in steps} == {"extract", "deduplicate", "plan", "shard-1-of-1", "publish"}
    site = prefect_processes.api.removesuffix("/api") + "/v2"

    def shown(path: str, name: str) -> str:
        page = opened(f"{site}/{path}", places / "profile", *PATIENT, f"--screenshot={places / name}.png")
        assert complaints(page) == []
        assert (places / f"{name}.png").stat().st_size > 10_000
        return text_of(page)

    run = shown(f"runs/flow-run/{run_id}?tab=Artifacts", "run")
    assert "score-small Completed" in run
    assert all(key in run for key in artifacts)
    assert "20 results, 1 errors" in run
    assert "1 of 21 rows are errors" in run
    assert "rows 21/21" in run
    assert " left" not in run

    said = {key: shown(f"artifacts/artifact/{number}", key) for key, number in artifacts.items()}
    assert "label rows good 12 bad 8 error EMPTY_PROMPT 1" in said["trunkline-small-summary"]
    assert "EMPTY_PROMPT" in said["trunkline-small-errors"]
    assert f"{small_job['output']}/report.html" in said["trunkline-small-report"]
    assert "100" in said["trunkline-small-progress"]


def test_a_pages_complaint_is_heard(places: Path) -> None:
    page = places / "page.html"
    page.write_text("<script>console.error('it broke')</script>")
    assert complaints(opened(page.as_uri(), places / "profile")) == ["it broke"]
