"""`embed` end to end: a table of texts to a column of vectors, held to transformers' hidden states."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from engine.request import RequestOutput
from tasks.drift import measure_drift
from tasks.job.job import ScoringJob
from tasks.preview import preview_rows
from tasks.request.embed import Embed
from tasks.storage.parts import PART_SCHEMA
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import ask, model_job, outcomes, run_steps

STEM = "Represent this sentence for retrieval: "
TEXTS = (
    f"{STEM}the parcel came late and the box was open.",
    f"{STEM}the parcel came on time.",
    f"{STEM}the parcel",
    "x",
    "caf\u00e9\n\n  indented",
)


def job_on(folder: Path, model: Path, **task: Any) -> ScoringJob:
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(TEXTS)]
    return model_job(folder, model, rows, task={"type": "embed", **task})


@torch.inference_mode()
def expected(model: Path, pooling: str, *, normalize: bool, dimensions: int | None) -> list[torch.Tensor]:
    """As sentence-transformers' Pooling, truncation and Normalize would, of a padded batch."""
    body, tokenizer = (
        AutoModel.from_pretrained(model, dtype=torch.float32).eval(),
        load_tokenizer(resolve_model(str(model))),
    )
    found = []
    for text in TEXTS:
        hidden = body(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        weights = torch.ones(len(hidden)) if pooling == "mean" else torch.arange(1.0, len(hidden) + 1)
        made = hidden[-1] if pooling == "last" else (hidden * weights[:, None]).sum(0) / weights.sum()
        made = made[:dimensions]
        found.append(torch.nn.functional.normalize(made, dim=0) if normalize else made)
    return found


@pytest.mark.parametrize(
    ("pooling", "normalize", "dimensions"),
    [("last", True, None), ("mean", False, None), ("weighted", True, 16), ("mean", True, 64)],
)
def test_vectors_are_those_of_transformers(
    tiny_model: Path, tmp_path: Path, pooling: str, normalize: bool, dimensions: int | None
) -> None:
    given = {"pooling": pooling, "normalize": normalize, "dimensions": dimensions}
    job = job_on(tmp_path, tiny_model, **given)
    planned, published = run_steps(job)
    wanted = expected(tiny_model, pooling, normalize=normalize, dimensions=dimensions)
    got = ask(
        job.output_folder, "select task, embedding, finish_reason, completion_tokens from results order by custom_id"
    )
    assert len(got) == len(TEXTS)
    for row, vector in zip(got, wanted, strict=True):
        assert (row["task"], row["finish_reason"], row["completion_tokens"]) == ("embed", "scored", 0)
        assert np.abs(np.array(row["embedding"]) - vector.numpy()).max() < 1e-4
    [answers] = published.answers
    assert (answers.task, answers.rows) == ("embed", ((str(dimensions or 64), len(TEXTS)),))
    [savings] = ask(job.output_folder, "select computed_prompt_tokens, prompt_tokens from prefix_savings")
    assert savings["computed_prompt_tokens"] == planned.summary.ideal_tokens < savings["prompt_tokens"]


def test_the_last_token_normalised_is_what_is_taken_where_nothing_is_said(tiny_model: Path, tmp_path: Path) -> None:
    job = job_on(tmp_path, tiny_model)
    run_steps(job)
    wanted = expected(tiny_model, "last", normalize=True, dimensions=None)
    for row, vector in zip(ask(job.output_folder, "from results order by custom_id"), wanted, strict=True):
        assert np.abs(np.array(row["embedding"]) - vector.numpy()).max() < 1e-4


def test_the_column_is_a_list_of_floats_for_any_reader(tiny_model: Path, tmp_path: Path) -> None:
    job = job_on(tmp_path, tiny_model, pooling="mean", dimensions=8)
    run_steps(job)
    [part] = (job.output_folder / "parts").glob("*.parquet")
    assert pq.read_schema(part).field("embedding").type == pa.list_(pa.float32())
    assert PART_SCHEMA.field("embedding").type == pa.list_(pa.float32())
    with duckdb.connect() as connection:
        connection.read_parquet(str(part)).create_view("part")
        [(least, most)] = connection.sql(
            "select min(list_cosine_similarity(a.embedding, b.embedding)), "
            "max(array_cosine_similarity(a.embedding::float[8], b.embedding::float[8])) from part a, part b"
        ).fetchall()
    assert -1 <= least < 0.99
    assert most == pytest.approx(1, abs=1e-6)


def test_equal_texts_asked_in_two_ways_are_two_requests(tiny_model: Path, tmp_path: Path) -> None:
    """In one output folder: the second job's rows find no answer of the first."""
    first, second = (job_on(tmp_path, tiny_model, pooling=pooling) for pooling in ("last", "mean"))
    assert run_steps(first)[0].pending == run_steps(second)[0].pending == len(TEXTS)
    assert run_steps(job_on(tmp_path, tiny_model, pooling="mean", normalize=True))[0].pending == 0


def test_rows_that_cannot_be_embedded(job_of: JobMaker) -> None:
    job = job_of([{"text": "good"}, {"text": None}, {"text": " "}, {"text": "x" * 300}], task={"type": "embed"})
    run_steps(job)
    assert outcomes(job) == {"0": "ok", "1": "EMPTY_PROMPT", "2": "EMPTY_PROMPT", "3": "CONTEXT_OVERFLOW"}
    [first, *_] = preview_rows(job, 1)
    assert (first.prompt, first.labels) == ("good", ())


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"type": "embed", "pooling": "max"}, r"task\.pooling: .*'last', 'mean' or 'weighted'"),
        ({"type": "embed", "dimensions": 0}, r"task\.dimensions: .*greater than or equal to 1"),
        ({"type": "embed", "normalize": "maybe"}, r"task\.normalize: must be true or false"),
        ({"type": "embed", "labels": [" a", " b"]}, "labels belong to type: choice, classify or score"),
        ({"type": "generate", "pooling": "mean"}, "pooling belongs to type: embed"),
        ({"type": "choice", "labels": [" a", " b"], "dimensions": 8}, "dimensions belong to type: embed"),
    ],
)
def test_keys_that_are_refused(job_of: JobMaker, task: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        job_of([{"text": "a"}], task=task)


def test_more_dimensions_than_the_model_has_are_refused_before_the_run(job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}], task={"type": "embed", "dimensions": 65})
    said = r"^task\.dimensions: 65 are more than the 64 of this model's hidden states; give as many or fewer$"
    with pytest.raises(UserError, match=said):
        run_steps(job)


def test_sampling_has_no_effect(job_of: JobMaker) -> None:
    with pytest.raises(UserError, match="sampling has no effect on type: embed"):
        job_of([{"text": "a"}], task={"type": "embed"}, sampling={"max_tokens": 3})


def test_a_row_may_ask_in_its_own_way(tiny_model: Path, tmp_path: Path) -> None:
    job = job_on(tmp_path, tiny_model, column="task", pooling="mean", dimensions=8)
    asked = [None, '{"pooling": "last"}', '{"dimensions": 65}', "generate", '{"pooling": "max"}']
    rows = [{"id": f"r{i}", "text": "the same text", "task": task} for i, task in enumerate(asked)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_steps(job)
    assert outcomes(job) == {"r0": "ok", "r1": "ok", "r2": "BAD_TASK", "r3": "ok", "r4": "BAD_TASK"}
    rows = ask(job.output_folder, "select task, len(embedding) as size, generated_text from results order by custom_id")
    assert [(row["task"], row["size"]) for row in rows] == [("embed", 8), ("embed", 8), ("generate", None)]
    vectors = ask(job.output_folder, "select embedding from results where embedding is not null order by custom_id")
    assert vectors[0] != vectors[1]


def test_precisions_are_compared_by_the_cosine(tiny_model: Path, tmp_path: Path) -> None:
    job = job_on(tmp_path, tiny_model, pooling="mean")
    job = job.model_copy(update={"model": job.model.model_copy(update={"quantization": "int8"})})
    drift = measure_drift(job, 5)
    assert drift.requests == 5
    assert [*drift.moved] == ["cosine distance"]
    assert 0 < drift.moved["cosine distance"].mean <= drift.moved["cosine distance"].most < 0.05


def test_cosine_distances_by_hand() -> None:
    def output(*values: float) -> RequestOutput:
        return RequestOutput("a", "scored", 1, embedding=np.array(values, dtype=np.float32))

    pairs = [(output(1, 0), output(0, 2)), (output(1, 1), output(2, 2)), (output(0, 0), output(0, 0))]
    moved = Embed().compare([*pairs, (output(0, 0), output(1, 0))])
    assert moved.differences == pytest.approx([1, 0, 0, 1])
    assert moved.measure == "cosine distance"
