"""`score` held to transformers: the probability of a yes behind a prompt, or behind a query with each of its items."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from tasks.request.items import parse_items
from tasks.source.row_error import BAD_ITEMS, RowError
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, outcomes, run_steps
from tests.tasks.test_loglikelihood import Plain, job_on

QUERY = "Is this a capital?\n"
ITEMS = ["Paris", "Lyon, which is not\n", "Rome. Yes or no:"]
TOKENS = [506, 4311]


def next_probs(plain: Plain, prompt: str) -> torch.Tensor:
    ids = torch.tensor([plain.tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        probs: torch.Tensor = plain.model(ids, use_cache=False).logits[0, -1].double().softmax(-1)
    return probs


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "probability"])
@pytest.mark.parametrize("item_first", [False, True], ids=["behind", "before"])
def test_items_have_the_scores_of_label_tokens(
    softmax: bool, item_first: bool, tiny_model: Path, tmp_path: Path
) -> None:
    plain = Plain(tiny_model)
    rows: list[dict[str, Any]] = [
        {"id": "a", "context": QUERY, "items": ITEMS},
        {"id": "b", "context": QUERY, "items": ITEMS[:1]},
        {"id": "c", "context": "Another query: ", "items": ITEMS[1:]},
    ]
    task = {"type": "score", "items_column": "items", "label_token_ids": TOKENS, "item_first": item_first}
    job = job_on(tmp_path, tiny_model, rows, task | {"apply_softmax": softmax})
    planned, published = run_steps(job)
    got = ask(job.output_folder, "select scores, score, label, prompt_tokens from results order by custom_id")
    written = 0
    for row, given in zip(got, rows, strict=True):
        wanted = []
        for item in given["items"]:
            prompt = item + given["context"] if item_first else given["context"] + item
            written += len(plain.tokenizer(prompt)["input_ids"])
            probs = next_probs(plain, prompt)
            first, second = float(probs[TOKENS[0]]), float(probs[TOKENS[1]])
            wanted.append(first / (first + second) if softmax else first)
        assert row["scores"] == pytest.approx(wanted, rel=1e-4)
        assert row["score"] is row["label"] is None
    # A query is computed once for all of its items.
    assert written == sum(row["prompt_tokens"] for row in got)
    [savings] = ask(job.output_folder, "select prompt_tokens, computed_prompt_tokens from prefix_savings")
    assert savings == {"prompt_tokens": written, "computed_prompt_tokens": planned.summary.computed_tokens}
    if not item_first:
        query = len(plain.tokenizer(QUERY)["input_ids"])
        assert planned.summary.computed_tokens <= written - 2 * query
    assert [name for name, _ in published.answers[0].rows] == ["lowest", "median", "highest"]
    assert published.answers[0].rows[2][1] == f"{max(score for row in got for score in row['scores']):.4f}"


def test_a_prompt_alone_has_one_score(tiny_model: Path, tmp_path: Path) -> None:
    plain = Plain(tiny_model)
    rows = [{"id": "a", "context": QUERY + ITEMS[0]}]
    job = job_on(tmp_path, tiny_model, rows, {"type": "score", "labels": [" yes", " no"], "variants": []})
    run_steps(job)
    [row] = ask(job.output_folder, "select score, scores, label, label_probs, missing_mass from results")
    yes, no = (math.exp(plain.score(QUERY + ITEMS[0], text)[0]) for text in (" yes", " no"))
    assert row["score"] == pytest.approx(yes / (yes + no), abs=1e-5)
    assert dict(row["label_probs"]) == pytest.approx({" yes": yes / (yes + no), " no": no / (yes + no)}, abs=1e-5)
    assert row["missing_mass"] == pytest.approx(1 - yes - no, abs=1e-6)
    assert row["scores"] is None


def test_yes_and_no_are_the_labels_where_nothing_is_said(job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}], task={"type": "score"})
    run_steps(job)
    [row] = ask(job.output_folder, "select label_probs, score from results")
    assert list(dict(row["label_probs"])) == ["yes", "no"]
    assert row["score"] == dict(row["label_probs"])["yes"]


def test_rows_that_cannot_be_scored(job_of: JobMaker) -> None:
    rows = [
        {"text": "a", "items": ["x", "y"]},
        {"text": "a", "items": []},
        {"text": "a", "items": None},
        {"text": "a", "items": ["x", ""]},
        {"text": None, "items": ["x"]},
        {"text": "a", "items": ["x", "y" * 300]},
        {"text": "a", "items": ["x\x00"]},
    ]
    job = job_of(rows, task={"type": "score", "items_column": "items"})
    run_steps(job)
    bad = dict.fromkeys("1236", "BAD_ITEMS")
    assert outcomes(job) == {"0": "ok", **bad, "4": "EMPTY_PROMPT", "5": "CONTEXT_OVERFLOW"}
    [error] = ask(job.output_folder, "select error_message from errors where error_type = 'CONTEXT_OVERFLOW'")
    assert error["error_message"].startswith("item 1: ")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"label_token_ids": [5]}, "one label has all of a softmax"),
        ({"labels": ["yes"]}, "one label has all of a softmax"),
        ({"label_token_ids": [5, 5]}, "task.label_token_ids: names no token, or one twice; name each once"),
        (
            {"label_token_ids": [5, 6], "labels": ["a", "b"]},
            "give exactly one of labels, labels_column, label_token_ids",
        ),
        ({"items": ["a"], "items_column": "text"}, "give exactly one of items, items_column"),
        ({"items": []}, "task.items: is empty"),
    ],
)
def test_jobs_that_are_refused(task: dict[str, Any], said: str, job_of: JobMaker) -> None:
    with pytest.raises(UserError, match=said):
        job_of([{"text": "a"}], task={"type": "score", **task})


def test_what_the_model_or_the_prompt_does_not_have(job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}], task={"type": "score", "label_token_ids": [5, 300]})
    with pytest.raises(UserError, match=r"task\.label_token_ids: 300 is no token of this model \(0 to 299\)"):
        run_steps(job)
    with pytest.raises(UserError, match=r"task\.items stand beside the text of prompt\.column or prompt\.template"):
        job_of([{"text": "a"}], task={"type": "score", "items": ["a"]}, prompt={"messages": "text"})


@pytest.mark.parametrize("value", [None, [], "[", "{}", ["a", None], ["a", 1], ["\ud800"], "5"])
def test_items_that_are_none(value: Any) -> None:
    found = parse_items(value)
    assert isinstance(found, RowError)
    assert found.type == BAD_ITEMS


def test_items_from_json() -> None:
    assert parse_items('["a", "b"]') == ("a", "b")


def test_a_row_of_its_own_with_items_beside_messages(job_of: JobMaker) -> None:
    rows = [
        {"text": [{"role": "user", "content": "a"}], "ask": '{"type": "score", "items": ["x"]}'},
        {"text": [{"role": "user", "content": "b"}], "ask": None},
    ]
    job = job_of(rows, task={"type": "score", "column": "ask"}, prompt={"messages": "text"})
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_ITEMS", "1": "ok"}
