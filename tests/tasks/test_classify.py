"""`classify` held to transformers by brute force: every variant of every label as a text of its own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import UserError
from tasks.job.variants import variants_of
from tasks.preview import preview_rows
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, outcomes, run_steps
from tests.tasks.test_loglikelihood import Plain, job_on

PROMPTS = ("Is water wet? Answer:", "Is water wet? Answer: ", "The sky is green.\nTrue or false?\n", "Well,")
LABELS = {"true": (" True", "True", " true"), "false": (" False", " not true at all"), "maybe": (" Maybe",)}
RESULTS = (
    "select custom_id, label, label_probs, label_logprobs, cumulative_logprob, missing_mass from results order by 1"
)


def brute_force(plain: Plain, prompt: str, variants: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Each label's probability: that the text goes on with one of its variants."""
    found = {}
    for label, texts in variants.items():
        context = plain.tokenizer(prompt.rstrip())["input_ids"]
        tokens = {
            tuple(whole[len(context) :]): text
            for text in texts
            if (whole := plain.tokenizer(prompt + text)["input_ids"])[: len(context)] == context
        }
        begun = [one for one in tokens if any(one != other and one[: len(other)] == other for other in tokens if other)]
        own = [text for ids, text in tokens.items() if ids and ids not in begun]
        found[label] = sum(math.exp(plain.score(prompt, text)[0]) for text in own)
    return found


@pytest.mark.parametrize(
    ("variants", "texts"),
    [
        (["space", "case"], lambda label: variants_of(label, ("space", "case"))),
        ([], lambda label: (label,)),
        (LABELS, lambda label: LABELS[label]),
    ],
    ids=["rules", "none", "mapping"],
)
def test_a_labels_probability_is_that_of_all_its_variants(
    variants: Any, texts: Any, tiny_model: Path, tmp_path: Path
) -> None:
    plain = Plain(tiny_model)
    rows = [{"id": f"r{i}", "context": prompt} for i, prompt in enumerate(PROMPTS)]
    job = job_on(tmp_path, tiny_model, rows, {"type": "classify", "labels": list(LABELS), "variants": variants})
    _, published = run_steps(job)
    got = ask(job.output_folder, RESULTS)
    assert len(got) == len(PROMPTS)
    for row, prompt in zip(got, PROMPTS, strict=True):
        wanted = brute_force(plain, prompt, {label: texts(label) for label in LABELS})
        logprobs, probs = dict(row["label_logprobs"]), dict(row["label_probs"])
        assert list(logprobs) == list(probs) == list(LABELS)
        for label, probability in wanted.items():
            assert logprobs[label] == pytest.approx(math.log(probability), abs=1e-4), (prompt, label)
            assert probs[label] == pytest.approx(probability / sum(wanted.values()), abs=1e-4)
        assert row["label"] == max(wanted, key=lambda label: wanted[label])
        assert row["cumulative_logprob"] == logprobs[row["label"]]
        assert row["missing_mass"] == pytest.approx(1 - sum(wanted.values()), abs=1e-6)
    *counts, (last, mean) = published.answers[0].rows
    assert sum(int(rows) for _, rows in counts) == len(PROMPTS)
    assert last == "mean probability on no label"
    assert float(mean) == pytest.approx(np.mean([row["missing_mass"] for row in got]), abs=1e-3)


def test_a_variant_that_melts_into_the_prompt_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    """`ld` behind `wor` is a token of neither, and what begins with another variant is that variant's already."""
    rows = [{"id": "a", "context": "all the wor", "labels": ["ld", "x"]}]
    job = job_on(tmp_path, tiny_model, rows, {"type": "classify", "labels_column": "labels", "variants": ["space"]})
    run_steps(job)
    [row] = ask(job.output_folder, RESULTS)
    plain = Plain(tiny_model)
    assert dict(row["label_logprobs"])["ld"] == pytest.approx(plain.score("all the wor", " ld")[0], abs=1e-4)
    alone = job_on(tmp_path, tiny_model, rows, {"type": "classify", "labels_column": "labels", "variants": []})
    run_steps(alone)
    [error] = ask(alone.output_folder, "select error_type, error_message from errors")
    assert error["error_type"] == "BAD_LABELS"
    assert "every variant of label 'ld' melts into the prompt's last token" in error["error_message"]


def test_rows_that_cannot_be_classified(job_of: JobMaker) -> None:
    rows = [
        {"text": "a", "labels": ["good", "bad"]},
        {"text": "a", "labels": ["Good", "good"]},
        {"text": "a", "labels": ["good", " good"]},
        {"text": "a", "labels": ["good"]},
        {"text": "a", "labels": ["good", "good"]},
        {"text": "a", "labels": []},
        {"text": "", "labels": ["good", "bad"]},
        {"text": "a", "labels": ["good", "other"]},
    ]
    job = job_of(rows, task={"type": "classify", "labels_column": "labels"})
    run_steps(job)
    bad = dict.fromkeys("12345", "BAD_LABELS")
    assert outcomes(job) == {"0": "ok", **bad, "6": "EMPTY_PROMPT", "7": "ok"}
    said = {row["custom_id"]: row["error_message"] for row in ask(job.output_folder, "select * from errors")}
    assert said["1"].startswith("labels 'Good' and 'good' have the variant 'good' in common")
    mapped = job_of(
        rows, task={"type": "classify", "labels_column": "labels", "variants": {"good": "good", "bad": ["bad", "ill"]}}
    )
    run_steps(mapped)
    assert outcomes(mapped) == {"0": "ok", **bad, "6": "EMPTY_PROMPT", "7": "BAD_LABELS"}
    [first, *_] = preview_rows(job, 1)
    assert first.labels == ("good", "bad")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"labels": []}, "task.labels: is empty"),
        ({"labels": ["a", "a"]}, "task.labels: names 'a' twice; name each label once"),
        ({"labels": ["a"]}, "one label is always the likeliest"),
        ({"labels": ["Yes", "yes"]}, "labels 'Yes' and 'yes' have the variant 'yes' in common"),
        ({"labels": ["a", "b"], "variants": ["plural"]}, "task.variants: 'plural' is no rule"),
        ({"labels": ["a", "b"], "variants": {"a": ["x"]}}, "variants give no text for the label 'b'"),
        ({"labels": ["a", "b"], "variants": {"a": ["x"], "b": ["x"]}}, "have the variant 'x' in common"),
        ({"labels": ["a", "b"], "variants": {"a": ["x"], "b": ["y"], "c": ["z"]}}, "variants are of 'c'"),
        ({"labels": ["a", "b"], "items": ["x"]}, "items belong to type: score"),
        ({}, "give exactly one of labels, labels_column; none given"),
    ],
)
def test_jobs_that_are_refused(task: dict[str, Any], said: str, job_of: JobMaker) -> None:
    with pytest.raises(UserError, match=said):
        job_of([{"text": "a"}], task={"type": "classify", **task})


def test_variants_by_rules() -> None:
    assert variants_of(" new York", ("case",)) == (" new York", " new york", " NEW YORK", " New York")
    assert variants_of("yes", ("space", "case")) == ("yes", "YES", "Yes", " yes", " YES", " Yes")
    assert variants_of(" a", ("space",)) == (" a", "a")
    assert variants_of("7", ()) == ("7",)
