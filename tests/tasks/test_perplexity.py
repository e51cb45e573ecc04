"""`perplexity` and prompt log-probabilities held to transformers: a plain forward pass of each prompt."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, make_job, outcomes, run_steps
from tests.tasks.test_loglikelihood import Plain, job_on

STEM = "Notes on packages. What each one is called, and what it does.\n"
TEXTS = (f"{STEM}pytest tests things.", f"{STEM}numpy adds them up.", STEM, "Two words", f"{STEM}pytest tests things.")


def rows_of(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "context": text} for i, text in enumerate(texts)]


@torch.inference_mode()
def forward(plain: Plain, text: str) -> tuple[list[int], torch.Tensor, float]:
    """The tokens, their logits, and transformers' own loss."""
    ids = torch.tensor([plain.tokenizer(text)["input_ids"]])
    output = plain.model(ids, labels=ids, use_cache=False)
    return ids[0].tolist(), output.logits[0], float(output.loss)


def test_it_is_the_exponential_of_transformers_loss(tiny_model: Path, tmp_path: Path) -> None:
    plain = Plain(tiny_model)
    job = job_on(tmp_path, tiny_model, rows_of(TEXTS), {"type": "perplexity"})
    planned, published = run_steps(job)
    got = ask(job.output_folder, "select * from results order by custom_id")
    for row, text in zip(got, TEXTS, strict=True):
        ids, _, loss = forward(plain, text)
        assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert row["logprob"] == pytest.approx(-loss * (len(ids) - 1), abs=1e-3)
        assert row["prompt_tokens"] == len(ids)
        assert row["prompt_logprobs"] is None
    # The stem is computed once, and equal texts are one request.
    assert planned.summary.computed_tokens < sum(row["prompt_tokens"] for row in got[:4]) - len(STEM.split())
    assert published.answers[0].rows[0] == ("lowest", f"{min(row['perplexity'] for row in got):.4g}")


@pytest.mark.parametrize("task", ["perplexity", "generate"])
def test_prompt_logprobs_on_request(task: str, tiny_model: Path, tmp_path: Path) -> None:
    plain = Plain(tiny_model)
    content = job_on(tmp_path, tiny_model, rows_of(TEXTS), {"type": task}).model_dump(mode="json")
    job = make_job(content | {"sampling": {"prompt_logprobs": 2} | ({"max_tokens": 2} if task == "generate" else {})})
    run_steps(job)
    got = ask(job.output_folder, "select prompt_logprobs from results order by custom_id")
    for row, text in zip(got, TEXTS, strict=True):
        ids, logits, _ = forward(plain, text)
        best = logits.log_softmax(-1).topk(2)
        first, *others = json.loads(row["prompt_logprobs"])
        assert first is None, "the first token follows nothing"
        assert [one["token_id"] for one in others] == ids[1:]
        wanted = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert [one["logprob"] for one in others] == pytest.approx(wanted, abs=1e-4)
        for place, one in enumerate(others):
            assert [token for token, _ in one["top"]] == best.indices[place].tolist()
            assert [logprob for _, logprob in one["top"]] == pytest.approx(best.values[place].tolist(), abs=1e-4)
    # SQL reads it as any JSON.
    [read] = ask(
        job.output_folder,
        "select json_extract(prompt_logprobs, '$[1].logprob') as one from results where custom_id = 'r3'",
    )
    ids, logits, _ = forward(plain, TEXTS[3])
    assert float(read["one"]) == pytest.approx(logits.log_softmax(-1)[0, ids[1]].item(), abs=1e-4)


def test_texts_without_a_perplexity(job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}, {"text": ""}, {"text": "x" * 300}], task={"type": "perplexity"})
    run_steps(job)
    assert outcomes(job) == {"0": "EMPTY_PROMPT", "1": "EMPTY_PROMPT", "2": "CONTEXT_OVERFLOW"}
    [first, *_] = ask(job.output_folder, "select error_message from errors order by custom_id")
    assert first["error_message"] == "the prompt is one token, which follows nothing"


def test_sampling_is_not_heeded(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match="sampling has no effect on type: perplexity"):
        job_of([{"text": "a"}], task={"type": "perplexity"}, sampling={"temperature": 1, "prompt_logprobs": 1})
    with pytest.raises(UserError, match="sampling has no effect on type: choice"):
        job_of([{"text": "a"}], task={"type": "choice", "labels": ["a", "b"]}, sampling={"prompt_logprobs": 1})
