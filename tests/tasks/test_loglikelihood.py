"""`loglikelihood` end to end: a table of contexts and continuations, held to transformers and to `choice`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from tasks.job.job import ScoringJob
from tasks.preview import preview_rows
from tasks.request.loglikelihood import parse_continuation
from tasks.source.row_error import BAD_CONTINUATION, RowError
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, model_job, outcomes, run_steps

CONTEXTS = (
    "Question: what is the capital of France?\nAnswer:",
    "Question: what is the capital of France?\nAnswer: ",
    "The parcel came late and the box was open. \n",
    "x",
)
CONTINUATIONS = (" Paris", "Paris, of course.", " a", "\n\n  indented\u00e9", " ")
RESULTS = "select custom_id, logprob, is_greedy, label, generated_text from results order by custom_id"


def pairs() -> list[tuple[str, str]]:
    return [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]


def job_on(folder: Path, model: Path, rows: list[dict[str, Any]], task: dict[str, Any]) -> ScoringJob:
    return model_job(folder, model, rows, prompt={"column": "context"}, task=task, output=str(folder / task["type"]))


class Plain:
    """transformers, one whole text at a time; context and continuation split as lm-evaluation-harness splits them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(resolve_model(str(folder)))
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def score(self, context: str, continuation: str) -> tuple[float, bool]:
        head = self.tokenizer(context.rstrip())["input_ids"]
        whole = self.tokenizer(context + continuation)["input_ids"]
        target = whole[len(head) :]
        logits = self.model(torch.tensor([head + target[:-1]]), use_cache=False).logits[0, len(head) - 1 :].double()
        logprobs = logits.log_softmax(-1)
        total = sum(float(logprobs[place, token]) for place, token in enumerate(target))
        return total, logits.argmax(-1).tolist() == target

    def greedy(self, context: str) -> str:
        ids = torch.tensor([self.tokenizer(context)["input_ids"]])
        with torch.inference_mode():
            return str(self.tokenizer.decode(self.model(ids, use_cache=False).logits[0, -1].argmax()))


def test_values_are_those_of_a_plain_forward(tiny_model: Path, tmp_path: Path) -> None:
    plain = Plain(tiny_model)
    # One continuation that greedy decoding would write, and that comes back as its token.
    greedy = next(
        (context, word)
        for context in (*CONTEXTS[:1], *(f"case {i}:" for i in range(50)))
        if (word := plain.greedy(context)) and plain.score(context, word)[1]
    )
    given = [*pairs(), greedy]
    rows = [{"id": f"r{i:02}", "context": c, "continuation": x} for i, (c, x) in enumerate(given)]
    job = job_on(tmp_path, tiny_model, rows, {"type": "loglikelihood", "continuation_column": "continuation"})
    planned, published = run_steps(job)
    got = ask(job.output_folder, RESULTS)
    assert len(got) == len(given)
    for row, (context, continuation) in zip(got, given, strict=True):
        wanted, is_greedy = plain.score(context, continuation)
        assert row["logprob"] == pytest.approx(wanted, abs=1e-4), (context, continuation)
        assert row["is_greedy"] is is_greedy
        assert row["label"] is row["generated_text"] is None
    assert got[-1]["is_greedy"]
    greedy_rows = sum(row["is_greedy"] for row in got)
    assert dict(published.answers[0].rows) == {"greedy": greedy_rows, "not greedy": len(got) - greedy_rows}
    # White space moves to the continuation, so two of the contexts are one, and each is computed once.
    contexts = {context.rstrip() for context, _ in given}
    ids = sorted(plain.tokenizer(context)["input_ids"] for context in contexts)
    distinct = {tuple(one[: end + 1]) for one in ids for end in range(len(one))}
    [savings] = ask(job.output_folder, "select computed_prompt_tokens from prefix_savings")
    assert savings["computed_prompt_tokens"] == planned.summary.computed_tokens
    assert len(distinct) == planned.summary.ideal_tokens
    assert planned.summary.computed_tokens <= sum(map(len, ids))


def test_values_are_those_of_a_choice(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"r{i:02}", "context": c, "continuation": x, "options": [x, " another"]}
        for i, (c, x) in enumerate(pairs())
        if x.strip()
    ]
    loglikelihood = job_on(tmp_path, tiny_model, rows, {"type": "loglikelihood", "continuation_column": "continuation"})
    choice = job_on(tmp_path, tiny_model, rows, {"type": "choice", "labels_column": "options"})
    run_steps(loglikelihood)
    run_steps(choice)
    ours = {row["custom_id"]: row["logprob"] for row in ask(loglikelihood.output_folder, RESULTS)}
    theirs = ask(choice.output_folder, "select custom_id, label_logprobs from results")
    assert len(ours) == len(theirs) == len(rows)
    by_id = {row["id"]: row["continuation"] for row in rows}
    for row in theirs:
        name = row["custom_id"]
        assert ours[name] == pytest.approx(dict(row["label_logprobs"])[by_id[name]], abs=1e-5)


def test_a_choice_of_one_label_names_loglikelihood(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match=r"task: one label is always the likeliest; score it as type: loglikelihood"):
        job_of([{"text": "a"}], task={"type": "choice", "labels": [" yes"]})
    rows = [{"text": "a", "options": [" yes"]}, {"text": "b", "options": [" yes", " no"]}]
    job = job_of(rows, task={"type": "choice", "labels_column": "options"})
    run_steps(job)
    assert outcomes(job) == {"0": "BAD_LABELS", "1": "ok"}
    [error] = ask(job.output_folder, "select error_message from errors")
    assert "type: loglikelihood" in error["error_message"]


def test_rows_that_cannot_be_scored(job_of: JobMaker) -> None:
    rows = [
        {"text": "context", "answer": " one"},
        {"text": "context", "answer": None},
        {"text": "context", "answer": ""},
        {"text": None, "answer": " one"},
        {"text": "context", "answer": "nul\x00"},
        {"text": "context", "answer": "x" * 300},
        {"text": "context", "answer": " "},
    ]
    job = job_of(rows, task={"type": "loglikelihood", "continuation_column": "answer"})
    run_steps(job)
    assert outcomes(job) == {
        "0": "ok",
        "1": "BAD_CONTINUATION",
        "2": "BAD_CONTINUATION",
        "3": "EMPTY_PROMPT",
        "4": "BAD_CONTINUATION",
        "5": "CONTEXT_OVERFLOW",
        "6": "ok",
    }
    [first, *_] = preview_rows(job, 1)
    assert (first.prompt, first.labels, first.label_word) == ("context", (" one",), "continuation")


def test_the_column_is_the_jobs_to_name(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match="task: give continuation_column; none given"):
        job_of([{"text": "a"}], task={"type": "loglikelihood"})
    with pytest.raises(UserError, match="continuation_column belongs to type: loglikelihood"):
        job_of([{"text": "a"}], task={"type": "generate", "continuation_column": "text"})
    with pytest.raises(UserError, match="sampling has no effect on type: loglikelihood"):
        job_of(
            [{"text": "a"}],
            task={"type": "loglikelihood", "continuation_column": "text"},
            sampling={"max_tokens": 2},
        )
    job = job_of([{"text": "a"}], task={"type": "loglikelihood", "continuation_column": "texts"})
    with pytest.raises(UserError, match=r"task\.continuation_column: the source has no column 'texts'; .*'text'"):
        run_steps(job)


@pytest.mark.parametrize(("value", "said"), [(None, "NULL"), ("", "empty"), ("\ud800", "UTF-8"), ("a\x00", "UTF-8")])
def test_continuations_that_are_none(value: str | None, said: str) -> None:
    found = parse_continuation(value)
    assert isinstance(found, RowError)
    assert found.type == BAD_CONTINUATION
    assert said in found.message


def test_numbers_are_their_text() -> None:
    assert parse_continuation(42) == ("42",)
