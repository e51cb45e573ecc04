"""A report in a browser: no error, no request, small and quick however many rows there are."""

import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.plan import NODE_SCHEMA
from tasks.report.page import write_report
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records, update_record
from tasks.storage.step_curve import MAX_POINTS, CurvePoint, StepCurve, write_curve
from tasks.storage.stored_plan import NODES, plan_folder
from tests.browser import CHROMIUM, opened
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import run_steps

# Groups of 250 requests, too narrow to be seen each, and before them wide ones of twenty times as many.
GROUPS, IN_A_GROUP, WIDE, TIMES = 3_000, 250, 50, 20

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.usefixtures("all_files"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]


@pytest.fixture
def report(job_of: JobMaker) -> Path:
    """Of a plan of a million requests under 3,050 prefixes, with as many points of time as a run keeps."""
    job = job_of([{"id": f"r{i}", "text": f"row {i} {'unlucky' if i % 9 == 0 else ''}"} for i in range(300)])
    run_steps(job)
    folder = OutputFolder(job.output_folder)
    [record] = read_records(folder)
    assert record.plan_id is not None
    pq.write_table(million_nodes(), plan_folder(folder, record.plan_id) / NODES)
    points = tuple(
        CurvePoint(7.0 * i, 30 * i, 9_000 * i, 50 * i, 700 * i, (i * 37 % 101) * 2**20, 6.9 * i)
        for i in range(1, MAX_POINTS + 1)
    )
    write_curve(folder, StepCurve(record.run_id, 3600.0, 512, 128 * 2**20, points))
    update_record(folder, record.run_id, limit_share=0.41)
    began = time.perf_counter()
    written = write_report(folder)
    assert time.perf_counter() - began < 10
    return written


def million_nodes() -> pa.Table:
    """A root, below it groups, below each its own requests: a parent before its children."""
    sizes = np.array([IN_A_GROUP * TIMES] * WIDE + [IN_A_GROUP] * GROUPS)
    firsts = 1 + np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])
    of = np.repeat(np.arange(len(sizes)), sizes + 1)
    is_group = np.diff(of, prepend=-1) > 0
    columns = {
        "parent": np.where(is_group, 0, firsts[of]),
        "start": np.where(is_group, 200, 1_000),
        "end": np.where(is_group, 1_000, 1_001 + np.arange(len(of)) % 300),
        "num_requests": np.where(is_group, sizes[of], 1),
    }
    root = {"parent": -1, "start": 0, "end": 200, "num_requests": sizes.sum()}
    arrays = {name: np.concatenate([[root[name]], values]) for name, values in columns.items()}
    return pa.table({name: pa.array(arrays[name], pa.int64()) for name in NODE_SCHEMA.names}, NODE_SCHEMA)


def test_a_report_of_a_million_rows_opens(report: Path, tmp_path: Path) -> None:
    assert report.stat().st_size < 5e6
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>nothing</title>")
    least = opened(empty.as_uri(), tmp_path / "profile")
    page = opened(report.as_uri(), tmp_path / "profile")
    assert "1M" in page.document
    assert page.document.count("<rect") == 1 + WIDE
    assert "CONSOLE" not in page.logged
    assert page.requests == []
    assert page.seconds - least.seconds < 2


def test_an_error_and_a_request_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><script>console.error("seen")</script><img src="http://example.com/x.png">')
    seen = opened(page.as_uri(), tmp_path / "profile")
    assert "CONSOLE" in seen.logged
    assert set(seen.requests) == {"http://example.com/x.png"}


@pytest.mark.parametrize("width", [500, 1280])
def test_a_report_is_as_wide_as_its_window(report: Path, tmp_path: Path, width: int) -> None:
    """A script of the test's, for the page has none, says how wide the document is; light or dark is the browser's."""
    text = report.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    asked = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{asked}</body>"), encoding="utf-8")
    document = opened(page.as_uri(), tmp_path / "profile", f"--window-size={width},900").document
    found = re.search(r"<title>(\d+) of (\d+)</title>", document)
    assert found is not None
    assert int(found[1]) <= int(found[2]) == width
