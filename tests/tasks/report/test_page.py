"""The report of an output folder: what it says, that it needs nothing else, and that rows cannot write into it."""

import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.figures import figure
from tasks.report import page as page_module
from tasks.report.facts import Facts, read_facts
from tasks.report.page import page_of, publish_report, render, write_report
from tasks.report.totals import Totals, read_totals
from tasks.report.views import open_views
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records
from tasks.storage.step_curve import CurvePoint, StepCurve, write_curve
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps

HOSTILE = '<script>alert("x")</script><img src=http://example.com/x>'


class Reader(HTMLParser):
    """The text of a page, its tags, and what its attributes would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data


pytestmark = pytest.mark.usefixtures("all_files")


def rows(count: int) -> list[dict[str, str]]:
    return [{"id": f"r{i}", "text": f"A prefix that all of them share, then {i}"} for i in range(count)]


def facts_of(folder: Path) -> Facts:
    output = OutputFolder(folder)
    [plan_id] = [path.name for path in output.plans.iterdir()]
    with open_views(output, plan_id, read_manifests(output)) as connection:
        return read_facts(output, plan_id, connection, read_totals(connection))


def read(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_a_run_leaves_a_report_that_its_owner_alone_reads(job_of: JobMaker) -> None:
    job = job_of(rows(40), price_per_hour=3.5)
    planned, published = run_steps(job)
    path = job.output_folder / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = read(job.output_folder)
    assert f"{published.computed_prompt_tokens:,}" in page.text
    assert f"{planned.summary.prompt_tokens:,}" in page.text
    assert "40" in page.text
    assert "every row has an end" in page.text
    assert " yes" in page.text
    assert "min_margin" in page.text
    assert "cost" in page.text
    assert "at 3.50 an hour" in page.text


def test_nothing_is_fetched_and_nothing_runs(job_of: JobMaker) -> None:
    job = job_of(rows(10))
    run_steps(job)
    page = read(job.output_folder)
    text = (job.output_folder / "report.html").read_text()
    assert page.links == ["data:,"]
    assert not page.tags & {"script", "iframe", "object", "embed", "img", "form"}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_what_rows_say_is_text(job_of: JobMaker, engine: FakeWorkers) -> None:
    """Ids, labels, kept names and error messages come from tables that others fill."""
    table = [{"id": f"{HOSTILE}{i}", "text": f"row {i} {'unlucky' if i % 2 else ''}"} for i in range(6)]
    job = job_of(table, source={"id": "id"}, task={"type": "choice", "labels": [HOSTILE, " no"]})
    run_steps(job)
    page = read(job.output_folder)
    assert not page.tags & {"script", "img"}
    assert f"{HOSTILE}1" in page.text
    assert "NON_FINITE" in page.text


def test_errors_have_few_examples_and_a_command(job_of: JobMaker) -> None:
    job = job_of([{"id": f"r{i}", "text": f"unlucky {i}"} for i in range(30)], source={"id": "id"})
    run_steps(job)
    facts = facts_of(job.output_folder)
    assert facts.error_types == (("NON_FINITE", 30),)
    assert [one.custom_id for one in facts.error_examples] == ["r0", "r1", "r2"]
    assert "--retry-failed" in read(job.output_folder).text


def test_the_tree_has_the_prefixes_that_are_shared(job_of: JobMaker) -> None:
    """Two groups of ten: what both share, and what each does; the bytes are the tokens."""
    table = [{"text": f"both {'a' * 20 if i < 10 else 'b' * 20} {i:02}"} for i in range(20)]
    job = job_of(table)
    run_steps(job)
    tree = facts_of(job.output_folder).tree
    assert (tree.requests, tree.longest) == (20, 28)
    found = sorted((node.start, node.end, node.first, node.num_requests) for node in tree.nodes)
    assert found[0] == (0, 5, 0, 20)
    assert {(one[0], one[1]) for one in found if one[3] == 10} == {(5, 27)}
    assert {one[2] for one in found if one[3] == 10} == {0, 10}
    assert set(tree.lengths) == {28.0}
    assert set(tree.shared) == {27.0}


def test_a_run_that_is_over_has_its_curve(job_of: JobMaker) -> None:
    job = job_of(rows(10))
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    [record] = read_records(folder)
    points = tuple(CurvePoint(0.5 * i, 4 * i, 400 * i, 0, 8 * i, 2**20 * i, 0.5 * i) for i in range(1, 5))
    write_curve(folder, StepCurve(record.run_id, 2.0, 512, 16 * 2**20, points))
    page = page_of(facts_of(job.output_folder))
    assert [chart.title for chart in page.charts] == ["Tokens computed", "Batch", "KV cache"]
    speeds, batch, memory = page.charts
    assert [area.kind for area in speeds.areas] == ["decode", "prefill"]
    assert speeds.y_ticks[-1].text == "800"
    assert batch.budget is not None
    assert (batch.budget.at, batch.budget.text) == (80.0, "budget 512")
    assert memory.budget is not None
    assert memory.budget.text == "budget 16 MiB"
    assert "Over the run" in render(page)
    assert [one.name for one in page.predictions] == ["prompt tokens computed", "seconds computing"]


def test_a_plans_time_is_that_of_the_longest_answers(job_of: JobMaker) -> None:
    job = job_of(rows(10), task={"type": "generate"}, sampling={"max_tokens": 3})
    run_steps(job)
    facts = facts_of(job.output_folder)
    curve = StepCurve(facts.scoring.run_id, 2.0, points=(CurvePoint(0.5, 4, 400, 0, 8, 0, 0.5),))
    names = [one.name for one in page_of(replace(facts, curve=curve)).predictions]
    assert names[1:] == ["tokens generated, at most", "seconds computing, with the longest answers"]


def test_the_speed_is_that_of_all_engines_together(job_of: JobMaker) -> None:
    """Two engines, each in a step all the time, for 5 seconds; then one of them alone for 5 more."""
    job = job_of(rows(10))
    run_steps(job)
    facts = facts_of(job.output_folder)
    computed = facts.tokens.computed + facts.tokens.generated
    times = [(20.25, 0.5), (21.25, 2.5), (25.0, 10.0), (27.5, 12.5), (30.0, 15.0)]
    points = tuple(CurvePoint(seconds, i, 10 * i, 0, i, 0, busy) for i, (seconds, busy) in enumerate(times, 1))
    curve = StepCurve(facts.scoring.run_id, 31.0, points=points, engines=2)
    [said] = [tile.more for tile in page_of(replace(facts, curve=curve)).tiles if tile.name == "time"]
    assert said == f"{figure(computed / 10, 0)} tokens/s while 2 engines computed"


def test_a_folder_where_nothing_was_scored(job_of: JobMaker) -> None:
    job = job_of(pa.table({"text": pa.array([None] * 3, pa.string())}))
    run_steps(job)
    page = read(job.output_folder)
    assert "Shared prefixes" not in page.text
    assert "errors" in page.text


def test_rows_without_an_end_are_told_with_the_command(job_of: JobMaker) -> None:
    job = job_of(rows(4))
    run_steps(job)
    facts = facts_of(job.output_folder)
    page = page_of(replace(facts, results=1))
    assert page.tiles[0].more == "3 without an end"
    assert page.commands[0] == ("continue", f"trunkline score JOB --output {job.output_folder}")


def test_a_report_that_cannot_be_made_fails_no_run(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Facts:
        raise RuntimeError("secret text of a row")

    monkeypatch.setattr(page_module, "read_facts", broken)
    job = job_of(rows(4))
    _, published = run_steps(job)
    assert published.results == 4
    assert not (job.output_folder / "report.html").exists()
    assert re.search(r"the report is not written \(RuntimeError\)", caplog.text)
    assert "secret" not in caplog.text


def test_a_report_is_written_anew(job_of: JobMaker, tmp_path: Path) -> None:
    job = job_of(rows(4))
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    folder.report.unlink()
    assert write_report(folder) == folder.report
    assert "every row has an end" in read(job.output_folder).text
    with pytest.raises(UserError, match="holds no results"):
        write_report(OutputFolder(tmp_path / "none"))
    nothing = Totals(0, 0, (), {})
    with duckdb.connect() as connection:
        assert publish_report(OutputFolder(tmp_path / "none"), "plan-000001-000000", connection, nothing) is None
