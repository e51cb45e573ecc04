"""A row that crashes a real model's engine, in a process of its own."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tasks.engine_process.engine_process import EngineProcess
from tests.tasks.steps import ask, outcomes, run_steps
from tests.tasks.test_loglikelihood import job_on


@pytest.mark.nightly
@pytest.mark.fault(2, 20)
def test_a_row_that_crashes_the_engine_is_set_aside_and_the_others_have_their_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["The sky is a zebra", "The sky is blue", "The grass is green"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    [deadly, *_] = {*tokenizer(texts[0])["input_ids"]} - {*tokenizer("".join(texts[1:]))["input_ids"]}
    rows = [{"id": f"r{i}", "context": text} for i, text in enumerate(texts)]
    task = {"type": "choice", "labels": [" yes", " no"]}
    undisturbed = job_on(tmp_path, tiny_model, rows[1:], task)
    run_steps(undisturbed)
    expected = ask(undisturbed.output_folder, "select custom_id, label, label_logprobs from results order by custom_id")

    job = job_on(tmp_path, tiny_model, rows, task).model_copy(update={"output": str(tmp_path / "disturbed")})
    monkeypatch.setattr("tests.tasks.steps.workers_of", lambda run: EngineProcess(run.model, run.config))
    monkeypatch.setenv("FAILPOINT", f"engine.token.{deadly}:1:crash")
    run_steps(job)
    assert outcomes(job) == {"r0": "ENGINE_CRASH", "r1": "ok", "r2": "ok"}
    [error] = ask(job.output_folder, "select error_message from errors")
    assert "SIGSEGV" in error["error_message"]
    assert "zebra" not in error["error_message"]
    answers = ask(job.output_folder, "select custom_id, label, label_logprobs from results order by custom_id")
    for got, wanted in zip(answers, expected, strict=True):
        assert (got["custom_id"], got["label"]) == (wanted["custom_id"], wanted["label"])
        assert dict(got["label_logprobs"]) == pytest.approx(dict(wanted["label_logprobs"]), abs=1e-5)
