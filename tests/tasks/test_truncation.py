"""`prompt.truncate_prompt_tokens`: the end of a prompt that is too long, where the job asks for it."""

from typing import Any

import pytest

from engine.errors import UserError
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import CONTEXT, FakeWorkers
from tests.tasks.steps import outcomes, run_steps

LONG = "".join(chr(97 + i % 26) for i in range(CONTEXT + 50))
GENERATE: dict[str, Any] = {"task": {"type": "generate"}, "sampling": {"max_tokens": 10}}


def prompts(engine: FakeWorkers) -> list[str]:
    asked = [request for work in engine.works for request in work.requests]
    return sorted((bytes(request.prompt_token_ids.tolist()).decode() for request in asked), key=len)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("keep", "job", "kept"),
    [
        (-1, GENERATE, CONTEXT - 10),
        (20, GENERATE, 20),
        (-1, {"task": {"type": "choice", "labels": [" yes", " never"]}}, CONTEXT - len(" never") + 1),
        (-1, {"task": {"type": "score", "label_token_ids": [5, 6]}}, CONTEXT),
        (30, {"task": {"type": "choice", "labels": [" yes", " no"]}}, 30),
    ],
    ids=["generate", "generate, the last 20", "choice", "score", "choice, the last 30"],
)
def test_the_last_tokens_are_kept(
    keep: int, job: dict[str, Any], kept: int, job_of: JobMaker, engine: FakeWorkers
) -> None:
    run_steps(
        job_of([{"text": LONG}, {"text": "short"}], prompt={"column": "text", "truncate_prompt_tokens": keep}, **job)
    )
    assert prompts(engine) == ["short", LONG[-kept:]]


@pytest.mark.fault(15)
def test_without_it_the_row_is_an_error(job_of: JobMaker) -> None:
    job = job_of([{"text": LONG}, {"text": "short"}], **GENERATE)
    run_steps(job)
    assert outcomes(job) == {"0": "CONTEXT_OVERFLOW", "1": "ok"}


def test_an_answer_that_leaves_no_room_is_an_error(job_of: JobMaker) -> None:
    job = job_of(
        [{"text": "a", "answer": "x" * (CONTEXT + 1)}],
        prompt={"column": "text", "truncate_prompt_tokens": -1},
        task={"type": "loglikelihood", "continuation_column": "answer"},
    )
    run_steps(job)
    assert outcomes(job) == {"0": "CONTEXT_OVERFLOW"}


def test_nothing_is_kept_of_nothing(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match=r"prompt\.truncate_prompt_tokens: keeps no token"):
        job_of([{"text": "a"}], prompt={"column": "text", "truncate_prompt_tokens": 0})
