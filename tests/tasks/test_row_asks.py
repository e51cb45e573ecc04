"""Tables whose rows ask differently: a task and sampling in columns, and what is wrong with them."""

import json
from decimal import Decimal
from typing import Any

import pytest

from engine.errors import UserError
from tasks.dry_run import plan_job
from tasks.preview import preview_rows
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, outcomes, run_steps, table

MIXED = {
    "task": {"type": "generate", "column": "ask", "labels": [" yes", " no"], "continuation_column": "answer"},
    "sampling": {"max_tokens": 3, "column": "how"},
}


def rows(*cells: tuple[object, object]) -> list[dict[str, Any]]:
    return [
        {"text": f"row {i}", "ask": task, "how": sampling, "answer": f" a{i}"}
        for i, (task, sampling) in enumerate(cells)
    ]


def test_each_row_is_answered_as_its_own_type(job_of: JobMaker) -> None:
    own = json.dumps({"type": "choice", "labels": [" a", " b", " c"]})
    job = job_of(rows((None, None), ("choice", None), (" loglikelihood ", ""), (own, None), ("", None)), **MIXED)
    _, published = run_steps(job)
    got = table(job)
    assert [row["task"] for row in got] == ["generate", "choice", "loglikelihood", "choice", "generate"]
    assert [row["generated_text"] is not None for row in got] == [True, False, False, False, True]
    labels = [set(dict(row["label_probs"])) if row["label_probs"] else None for row in got]
    assert labels == [None, {" yes", " no"}, None, {" a", " b", " c"}, None]
    assert [row["logprob"] is not None for row in got] == [False, False, True, False, False]
    assert [(one.task, len(one.rows)) for one in published.answers] == [
        ("choice", len({row["label"] for row in got if row["label"]})),
        ("generate", 2),
        ("loglikelihood", 1),
    ]


def test_a_rows_sampling_wins_over_the_jobs(job_of: JobMaker, engine: FakeWorkers) -> None:
    cells = [
        None,
        json.dumps({"max_tokens": 2}),
        json.dumps({"until": ["x"], "do_sample": True, "seed": 3}),
        json.dumps({"temperature": 0.5, "max_new_tokens": 9}),
    ]
    sampling = {"max_tokens": 4, "stop": "s", "top_k": 5, "column": "how"}
    run_steps(job_of(rows(*((None, cell) for cell in cells)), task={"type": "generate"}, sampling=sampling))
    asked = {bytes(one.prompt_token_ids.tolist()).decode(): one.params for one in engine.works[0].requests}
    found = [(p.max_tokens, p.stop, p.temperature, p.seed, p.top_k) for _, p in sorted(asked.items())]
    assert found == [
        (4, ("s",), 0.0, None, 5),
        (2, ("s",), 0.0, None, 5),
        (4, ("x",), 1.0, 3, 5),
        (9, ("s",), 0.5, None, 5),
    ]


def test_a_row_that_asks_what_the_job_would_has_its_answer_already(job_of: JobMaker, engine: FakeWorkers) -> None:
    """The name is of what is asked, wherever that stands."""
    plain = {"task": {"type": "choice", "labels": [" yes", " no"]}}
    run_steps(job_of(rows((None, None), (None, None)), **plain))
    cell = json.dumps({"type": "choice", "labels": [" yes", " no"]})
    planned, _ = run_steps(job_of(rows(("choice", None), (cell, None)), **MIXED))
    assert (planned.committed, planned.pending) == (2, 0)
    texts = {"task": {"type": "generate"}, "sampling": {"max_tokens": 3, "temperature": 0.5, "seed": 1}}
    run_steps(job_of(rows((None, None)), **texts))
    planned, _ = run_steps(job_of(rows((None, json.dumps({"temperature": 0.5, "seed": 1}))), **MIXED))
    assert (planned.committed, planned.pending) == (1, 0)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("foo", "task.type: should be 'choice', "),
        ("{", "the row's task is not valid JSON"),
        ('{"type": "choice", "type": "generate"}', "the row's task: key 'type' twice"),
        ('{"type": "choice", "labels": [" a"]}', "task: one label is always the likeliest"),
        ('{"type": "choice", "labels": []}', "task.labels: is empty; name at least two labels"),
        ('{"type": "choice", "labels": [" a", " a"]}', "task.labels: names ' a' twice; name each label once"),
        ('{"type": "generate", "labels": [" a", " b"]}', "task: labels belong to type: choice"),
        ('{"labels_column": "text"}', "task.labels_column: a row cannot name a column; name it in the job"),
        ('{"column": "text"}', "task.column: a row cannot name a column"),
        (
            r'{"type": "choice", "labels": ["\ud800", " b"]}',
            "the row's task is not valid UTF-8, or holds a NUL character",
        ),
        (
            r'{"type": "choice", "labels": ["\u0000", " b"]}',
            "the row's task is not valid UTF-8, or holds a NUL character",
        ),
        ('{"lables": 1}', "task.lables: unknown key; did you mean labels?"),
    ],
)
def test_a_bad_task_is_the_rows_own_error(cell: str, said: str, job_of: JobMaker) -> None:
    job = job_of(rows((cell, None), (None, None)), **MIXED)
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_TASK", "1": "ok"}
    [error] = ask(job.output_folder, "select error_message from errors")
    assert said in error["error_message"]
    assert "\n" not in error["error_message"]
    assert preview_rows(job, 1)[0].error is not None


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[1]", "the row's sampling is not a JSON object of keys"),
        ("temperature: 1", "the row's sampling is not valid JSON"),
        ('{"temperature": -1}', "sampling.temperature: should be greater than or equal to 0 (got -1)"),
        ('{"temprature": 1}', "sampling.temprature: unknown key; did you mean temperature?"),
        ('{"n": 2}', "sampling: n 2 asks for copies of one greedy text; give a temperature, or leave it out"),
        ('{"min_tokens": 9}', "sampling: min_tokens 9 is more than max_tokens 3"),
        ('{"until": "a", "stop": "b"}', "sampling: until and stop say the same; give one"),
        ('{"do_sample": "no"}', "sampling: do_sample must be true or false, not 'no'"),
        ('{"stop_token_ids": [300]}', "sampling.stop_token_ids: 300 is no token of this model (0 to 299)"),
        ('{"column": "text"}', "sampling.column: a row cannot name a column"),
    ],
)
def test_bad_sampling_is_the_rows_own_error(cell: str, said: str, job_of: JobMaker) -> None:
    job = job_of(rows((None, cell), (None, None)), **MIXED)
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_SAMPLING", "1": "ok"}
    [error] = ask(job.output_folder, "select error_message from errors")
    assert said in error["error_message"]


def test_sampling_of_a_row_that_samples_nothing_is_refused(job_of: JobMaker) -> None:
    """The job's own has no effect on such a row."""
    job = job_of(rows(("choice", json.dumps({"temperature": 1})), ("choice", None)), **MIXED)
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_SAMPLING", "1": "ok"}


def test_a_row_without_what_its_type_needs(job_of: JobMaker) -> None:
    """The job need not have it where every row that asks for the type has it itself."""
    cells = [("choice", None), (json.dumps({"type": "choice", "labels": [" a", " b"]}), None), (None, None)]
    job = job_of(rows(*cells), task={"type": "choice", "column": "ask"})
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_TASK", "1": "ok", "2": "BAD_TASK"}
    found = {row["error_message"] for row in ask(job.output_folder, "select error_message from errors")}
    assert found == {"task: give exactly one of labels, labels_column; none given"}


def test_cells_may_be_objects(job_of: JobMaker, engine: FakeWorkers) -> None:
    """A struct has its fields in every row: those that are NULL say nothing."""
    cells = [{"type": "choice", "labels": [" a", " b"]}, {"type": None, "labels": None}]
    hows = [None, {"max_tokens": 2, "seed": None}]
    job = job_of(rows(*zip(cells, hows, strict=True)), **MIXED)
    run_steps(job)
    assert [row["task"] for row in table(job)] == ["choice", "generate"]
    assert [one.params.max_tokens for one in engine.works[0].requests if one.labels is None] == [2]


def test_numbers_of_a_query_may_be_decimals(job_of: JobMaker, engine: FakeWorkers) -> None:
    how = {"temperature": Decimal("0.5"), "max_tokens": Decimal(2), "seed": Decimal(1)}
    run_steps(job_of([{"text": "a", "how": how}], task={"type": "generate"}, sampling={"column": "how"}))
    [asked] = engine.works[0].requests
    assert (asked.params.temperature, asked.params.max_tokens, asked.params.seed) == (0.5, 2, 1)


def test_a_plan_counts_each_rows_own(job_of: JobMaker) -> None:
    cells = [(None, None), ("choice", None), (None, json.dumps({"temperature": 1, "seed": 1, "n": 5}))]
    report = plan_job(job_of(rows(*cells), **MIXED))
    assert (report.pending, report.plan.requests, report.plan.max_decode_tokens) == (3, 7, 18)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"type": "generate", "column": "none"}}, "task.column: the source has no column 'none'"),
        (
            {"sampling": {"column": "none"}, "task": {"type": "generate"}},
            "sampling.column: the source has no column 'none'",
        ),
        ({"model": {"adapter_column": "none"}}, "model.adapter_column: the source has no column 'none'"),
        (
            {"task": {"type": "choice", "labels": [" a", " b"], "labels_column": "x", "column": "ask"}},
            "task: give exactly one of labels, labels_column; labels and labels_column given",
        ),
        ({"sampling": {"column": "how"}}, "sampling has no effect on type: choice; remove it"),
    ],
)
def test_what_is_wrong_with_the_job_is_said_before(changes: dict[str, Any], said: str, job_of: JobMaker) -> None:
    if "model" in changes:
        changes = {"model": job_of([]).model.model_dump() | changes["model"]}
    with pytest.raises(UserError) as refused:
        plan_job(job_of(rows((None, None)), **changes))
    assert said in str(refused.value)
