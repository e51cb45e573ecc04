"""What a finished run says of itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.report import Outcomes, RunReport
from tasks.publish import Answers, Published
from tasks.request.task_type import Shown

LABELS = Answers("choice", Shown("label_counts", ("label", "rows")), ((" yes", 1200),))
TEXTS = Answers("generate", Shown("sample_texts", ("row", "text"), quote=True), (("0", "a text"),))


def report(
    rows: int,
    results: int,
    errors: int,
    answers: tuple[Answers, ...] = (LABELS,),
    kinds: tuple[tuple[str, int], ...] = (),
    **more: Any,
) -> RunReport:
    missing = rows - results - errors
    published = Published(rows, results, errors, missing, answers, kinds, 0, 0, 0, 0.0, 0.0, Path("x"))
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


def test_the_wait_for_another_run_is_told_apart() -> None:
    facts = report(4, 4, 0, scored_rows=4, seconds=2.0, waited_seconds=60.0).facts()
    assert facts[1:] == [
        ("scored now", "4 rows in 2.0 s: 2.0 rows/s"),
        ("waited", "60.0 s while another run had the device"),
    ]


@pytest.mark.parametrize(
    ("prompt", "unique", "computed", "said"),
    [
        (220, 55, 47, "220 as written, 55 of different prompts, 47 computed"),
        (55, 55, 47, "55 as written, 47 computed"),
    ],
)
def test_what_is_saved_follows_from_what_is_told(prompt: int, unique: int, computed: int, said: str) -> None:
    """It is of different prompts alone: equal rows are not asked twice, with sharing or without."""
    done = report(20, 20, 0, scored_rows=20)
    published = replace(
        done.published,
        prompt_tokens=prompt,
        unique_prompt_tokens=unique,
        computed_prompt_tokens=computed,
        saved_fraction=1 - computed / unique,
        ideal_saved_fraction=1 - computed / unique,
    )
    facts = dict(replace(done, published=published).facts())
    assert (facts["prompt tokens"], facts["saved by sharing"]) == (said, "14.5% (ideal 14.5%)")


def test_answers_of_one_type_stand_above_the_errors() -> None:
    found = report(3, 2, 1, kinds=(("BAD_TASK", 1),)).outcomes()
    assert found == [Outcomes(("label", "rows"), [(" yes", "1,200"), ("error BAD_TASK", "1")])]


def test_each_type_has_a_table_of_its_own() -> None:
    mixed = report(3, 2, 1, answers=(LABELS, TEXTS), kinds=(("BAD_TASK", 1),))
    assert mixed.outcomes() == [
        Outcomes(("choice: label", "rows"), [(" yes", "1,200")]),
        Outcomes(("generate: row", "text"), [("0", "a text")]),
        Outcomes(("error", "rows"), [("error BAD_TASK", "1")]),
    ]


def test_the_page_has_tables_with_heads_and_no_text() -> None:
    """The first fact is the head of the first table: an empty one looks like a fault."""
    assert report(3, 2, 1, answers=(LABELS, TEXTS), kinds=(("BAD|TASK", 1),), scored_rows=2).markdown() == (
        "# j, r\n\n"
        "| rows | 3 (2 results, 1 errors) |\n|---|---|\n| scored now | 2 rows in 1.0 s: 2.0 rows/s |\n\n"
        "| label | rows |\n|---|---|\n|  yes | 1,200 |\n| error BAD\\|TASK | 1 |\n\n"
        "Results: `x`"
    )
