"""`min_margin` of results: each task type's, on the tiny model."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.steps import ask, model_job, run_steps

ROWS = [{"id": f"r{i}", "prompt": f"The river {word}"} for i, word in enumerate(("bends", "is", "was wide", "ran"))]
LABELS = {"labels": [" north", " south", " east"]}


@pytest.mark.parametrize(
    ("task", "margin"),
    [
        ({"type": "choice"} | LABELS, "label_logprobs"),
        ({"type": "classify"} | LABELS, "label_logprobs"),
        ({"type": "score", "labels": [" yes", " no"]}, "label_logprobs"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_labels_have_the_lead_of_the_likeliest(
    tiny_model: Path, tmp_path: Path, task: dict[str, Any], margin: str
) -> None:
    job = model_job(tmp_path, tiny_model, ROWS, prompt={"column": "prompt"}, task=task)
    run_steps(job)
    for row in ask(job.output_folder, f"select {margin} as scores, min_margin from results"):
        first, second = sorted((value for _, value in row["scores"]), reverse=True)[:2]
        assert row["min_margin"] == pytest.approx(first - second, abs=1e-12)


def test_texts_have_one_and_perplexity_has_none(tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for name, changes in {
        "generate": {"sampling": {"max_tokens": 4}},
        "drawn": {"sampling": {"max_tokens": 4, "temperature": 1.0, "seed": 1, "n": 2}},
        "perplexity": {},
    }.items():
        task = {"type": "generate" if name == "drawn" else name}
        given = {"prompt": {"column": "prompt"}, "task": task, "output": str(tmp_path / name), **changes}
        job = model_job(tmp_path, tiny_model, ROWS, **given)
        run_steps(job)
        found[name] = [row["min_margin"] for row in ask(job.output_folder, "select min_margin from results")]
    assert all(value > 0 for value in found["generate"] + found["drawn"])
    assert found["perplexity"] == [None] * len(ROWS)
