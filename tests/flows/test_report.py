"""What a finished run says of itself."""

from pathlib import Path
from typing import Any

import pytest

from flows.report import RunReport
from tasks.publish import Published
from tasks.request.task_type import Shown

SHOWN = Shown("label_counts", ("label", "rows"))


def report(rows: int, results: int, errors: int, **more: Any) -> RunReport:
    published = Published(rows, results, errors, rows - results - errors, SHOWN, (), (), 0, 0, 0, 0.0, 0.0, Path("x"))
    given = {"scored_rows": 0, "rejected": 0, "seconds": 1.0} | more
    return RunReport(job="j", run_id="r", folder=Path("x"), published=published, shards=0, **given)


@pytest.mark.parametrize(
    ("counts", "rejected", "why"),
    [
        ((0, 0, 0), 0, "the source has no rows"),
        ((3, 0, 3), 3, "no row can be scored"),
        ((3, 2, 1), 1, "every row that can be scored had a committed result"),
        ((3, 3, 0), 0, "every row had a committed result"),
        ((3, 1, 0), 0, "the run failed before"),
    ],
)
def test_why_nothing_was_scored(counts: tuple[int, int, int], rejected: int, why: str) -> None:
    assert dict(report(*counts, rejected=rejected).facts())["scored now"] == f"nothing: {why}"


def test_a_slow_row_is_no_zero() -> None:
    facts = dict(report(1, 1, 0, scored_rows=1, seconds=60.0).facts())
    assert facts["scored now"] == "1 rows in 60.0 s: under 0.1 rows/s"
