"""Figures of the views and macros: as they are, in types that any program has, and when two of them are the same."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from engine.request import LabelScore, PromptLogprobs, Request, RequestOutput
from tasks.query import query
from tasks.storage.statements import statement
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, run_steps, use_fakes

ROWS = [{"id": "a", "text": "one", "items": ["x", "y"]}, {"id": "b", "text": "two", "items": ["z"]}]
TASKS: dict[str, dict[str, Any]] = {
    "embed": {"type": "embed", "normalize": False},
    "items": {"type": "score", "items_column": "items"},
    "loglikelihood": {"type": "loglikelihood", "continuation_column": "text"},
    "perplexity": {"type": "perplexity"},
}


class Measuring(FakeWorkers):
    """All figures are `shift` away from what they are without."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self._shift = shift

    def _answer(self, request: Request) -> RequestOutput:
        ids, shift = request.prompt_token_ids, self._shift
        likelihoods = (-1 - shift, *(-2.0 for _ in request.labels or ()))
        logprobs = np.full(len(ids) - 1, -2 - shift, np.float32)
        no_others = np.zeros((len(ids) - 1, 0))
        return RequestOutput(
            request.request_id,
            "scored",
            len(ids),
            label_scores=tuple(LabelScore(one, is_greedy=False) for one in likelihoods[: len(request.labels or ())]),
            prompt_logprobs=PromptLogprobs(1, ids[1:], logprobs, logprobs < 0, no_others.astype(np.int32), no_others),
            embedding=np.array([3, 3 * shift], np.float32),
        )


def both(folder: Path, sql: str) -> list[dict[str, Any]]:
    with query(folder / "one", sql, others={"other": folder / "other"}) as result:
        rows: list[dict[str, Any]] = result.table().to_pylist()
        return rows


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (1e-6, True), (0.1, False)])
def test_figures_are_the_same_up_to_a_thousandth(
    monkeypatch: pytest.MonkeyPatch, job_of: JobMaker, tmp_path: Path, task: str, shift: float, same: bool
) -> None:
    for name, by in (("one", 0.0), ("other", shift)):
        use_fakes(monkeypatch, Measuring(by))
        run_steps(job_of(ROWS, source={"id": "id"}, task=TASKS[task], output=str(tmp_path / name)))
    compared = both(tmp_path, "from compare_runs('this', 'other')")
    assert [(row["a_status"], row["same"]) for row in compared] == [("ok", same)] * 2
    [found] = both(tmp_path, "from agreement('this', 'other')")
    assert (found["compared"], found["same"], found["agreement"]) == (2, 2 * same, float(same))
    assert (found["mean_difference"] > 0.001) is not same
    assert found["kappa"] is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("('a label', 0.9, NULL, NULL)", "('a label', 0.2, NULL, NULL)", True),
        ("('a label', 0.9, NULL, NULL)", "(NULL, 0.9, NULL, NULL)", False),
        ("(NULL, 1000, NULL, NULL)", "(NULL, 1000.9, NULL, NULL)", True),
        ("(NULL, 1000, NULL, NULL)", "(NULL, 1001.1, NULL, NULL)", False),
        ("(NULL, -1e-7, NULL, NULL)", "(NULL, -2e-7, NULL, NULL)", True),
        ("(NULL, 'inf', NULL, NULL)", "(NULL, 'inf', NULL, NULL)", True),
        ("(NULL, NULL, [0.5, 0.1], NULL)", "(NULL, NULL, [0.5, 0.2], NULL)", False),
        ("(NULL, NULL, [0.5, 0.1], NULL)", "(NULL, NULL, [0.5, 0.1005], NULL)", True),
        ("(NULL, NULL, [0.5, 0.1], NULL)", "(NULL, NULL, [0.5], NULL)", False),
        ("(NULL, NULL, [], NULL)", "(NULL, NULL, [], NULL)", True),
        ("(NULL, NULL, NULL, [1, 2])", "(NULL, NULL, NULL, [2, 4])", True),
        ("(NULL, NULL, NULL, [1, 2])", "(NULL, NULL, NULL, [1, 2, 3])", False),
        ("(NULL, NULL, NULL, [0, 0])", "(NULL, NULL, NULL, [0, 0])", True),
        ("(NULL, 1, NULL, NULL)", "(NULL, NULL, [1], NULL)", False),
    ],
)
def test_two_answers(one: str, other: str, same: bool) -> None:
    with duckdb.connect() as connection:
        connection.execute("create schema detail")
        connection.execute(
            "create table given (folder text, answer text, value double, scores double[], embedding float[])"
        )
        for name, values in (("one", one), ("other", other)):
            connection.execute(f"insert into given values ('{name}', {values[1:]}")
        connection.execute(
            "create macro detail.answers_of(name) as table "
            "select 'r' as custom_id, 'ok' as status, 'x' as task, * exclude (folder) from given where folder = name"
        )
        connection.execute(statement("macros/compare_runs"))
        assert connection.sql("select same from compare_runs('one', 'other')").fetchall() == [(same,)]


def test_a_few_of_a_million_are_not_rounded_away() -> None:
    with duckdb.connect() as connection:
        connection.execute("""
            create view results as
            select 'choice' as task, if(i < 40, 'rare', 'common') as label, 1e-5 as min_margin,
                map {label: if(i < 40, 0.00004, 0.99996)} as label_probs
            from range(1000000) as t(i)
        """)
        connection.execute(statement("views/label_counts"))
        [common, rare] = connection.sql("from label_counts").fetchall()
        assert common[1:] == ("common", 999_960, 0.99996, pytest.approx(0.99996), 1e-5)
        assert rare[1:] == ("rare", 40, 0.00004, pytest.approx(0.00004), 1e-5)
        connection.execute("""
            create macro compare_runs(a, b) as table
            select 'choice' as task, 'yes' as a_answer, if(i < 40, 'no', 'yes') as b_answer, i >= 40 as same,
                0.0 as difference
            from range(1000000) as t(i)
        """)
        connection.execute(statement("macros/agreement"))
        assert connection.sql("select same, agreement from agreement('a', 'b')").fetchall() == [(999_960, 0.99996)]


def test_no_column_is_wider_than_other_programs_numbers(job_of: JobMaker) -> None:
    """A HUGEINT is a DECIMAL(38, 0) in a Parquet file."""
    job = job_of(ROWS)
    run_steps(job)
    views = [one["name"] for one in ask(job.output_folder, "show tables")]
    for asked in (*views, "compare_runs('this', 'this')", "agreement('this', 'this')"):
        with query(job.output_folder, f"from {asked}") as result:
            assert not [one for one in result.schema if pa.types.is_decimal(one.type)], asked
    seconds = ask(job.output_folder, "select throughput.seconds = runs.seconds as same from throughput, runs")
    assert seconds == [{"same": True}]
