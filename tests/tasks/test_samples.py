"""Drawn texts on the tiny model: several a prompt, and the same ones whatever they are computed beside."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tasks.job.job import ScoringJob
from tasks.request.generate import seed_of
from tests.tasks.steps import ask, model_job, plan_alone, run_steps

TEXTS = [f"The {what} by the {where}" for what in ("river", "harbour", "road") for where in ("mill", "old bridge")]
SEEDED = {"temperature": 1.0, "seed": 5, "max_tokens": 6, "ignore_eos": True}
SAMPLES = "select custom_id, generated_text, cumulative_logprob, outputs from results order by custom_id"

Rows = list[dict[str, Any]]


def job_on(folder: Path, model: Path, rows: Rows, sampling: dict[str, Any], **changes: Any) -> ScoringJob:
    return model_job(folder, model, rows, task={"type": "generate"}, sampling=sampling, **changes)


def plain_rows() -> Rows:
    return [{"id": f"r{i}", "text": text} for i, text in enumerate(TEXTS)]


def sampled(folder: Path, model: Path, rows: Rows, sampling: dict[str, Any], **changes: Any) -> Rows:
    folder.mkdir()
    job = job_on(folder, model, rows, sampling, **changes)
    run_steps(job)
    return ask(job.output_folder, SAMPLES)


def drawn_texts(row: dict[str, Any]) -> tuple[str, str, dict[int, str]]:
    """All of a row that is text: its name, its answer, and each of its texts by number."""
    return row["custom_id"], row["generated_text"], {one["index"]: one["text"] for one in row["outputs"] or ()}


def texts_of(rows: Rows) -> list[str]:
    return [row["generated_text"] for row in rows]


def test_several_texts_a_prompt(tiny_model: Path, tmp_path: Path) -> None:
    """The first is the one that would be drawn alone, the prompt is computed once, and the likeliest stands first."""
    alone = sampled(tmp_path / "alone", tiny_model, plain_rows(), SEEDED | {"logprobs": 0})
    three = sampled(tmp_path / "three", tiny_model, plain_rows(), SEEDED | {"n": 3})
    second = sampled(tmp_path / "second", tiny_model, plain_rows(), SEEDED | {"seed": seed_of(5, 1)})
    by_number = [{one["index"]: one for one in row["outputs"]} for row in three]
    assert [sorted(texts) for texts in by_number] == [[0, 1, 2]] * len(TEXTS)
    assert [texts[0]["text"] for texts in by_number] == texts_of(alone)
    logprobs = [texts[0]["cumulative_logprob"] for texts in by_number]
    assert logprobs == pytest.approx([row["cumulative_logprob"] for row in alone], abs=1e-3)
    assert [texts[1]["text"] for texts in by_number] == texts_of(second)
    assert all(len({one["text"] for one in row["outputs"]}) == 3 for row in three)
    for row in three:
        logprobs = [one["cumulative_logprob"] for one in row["outputs"]]
        assert logprobs == sorted(logprobs, reverse=True)
        best = row["outputs"][0]
        assert (row["generated_text"], row["cumulative_logprob"]) == (best["text"], best["cumulative_logprob"])
        assert best["finish_reason"] == "length"
    computed = "select computed_prompt_tokens as c, prompt_tokens as p, planned_tokens as l from prefix_savings"
    once, thrice = (ask(tmp_path / name / "out", computed) for name in ("alone", "three"))
    assert once == thrice
    usage = "select distinct completion_tokens as c, logprobs is null as l from results"
    assert ask(tmp_path / "three" / "out", usage) == [{"c": 18, "l": True}]


def test_the_likeliest_of_more_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    five = sampled(tmp_path / "five", tiny_model, plain_rows(), SEEDED | {"n": 5})
    two = sampled(tmp_path / "two", tiny_model, plain_rows(), SEEDED | {"n": 2, "best_of": 5})
    assert [row["outputs"] for row in two] == [row["outputs"][:2] for row in five]
    assert [row["generated_text"] for row in two] == [row["generated_text"] for row in five]


def table_of_seeds() -> Rows:
    """Rows that share prefixes, some with a seed of their own, two of them with one prompt."""
    own: list[dict[str, Any] | None] = [
        None,
        {"seed": 9},
        {"n": 2},
        None,
        {"seed": 9, "top_k": 50},
        {"n": 2, "seed": 1},
    ]
    rows = [*plain_rows(), {"id": "r6", "text": TEXTS[0]}]
    return [
        row | {"how": None if one is None else json.dumps(one)} for row, one in zip(rows, [*own, own[1]], strict=True)
    ]


def test_samples_follow_from_their_row_alone(tiny_model: Path, tmp_path_factory: Any) -> None:
    """Equal under any order of the rows, any size of shards and steps, and a run that was stopped and taken up."""
    rows, sampling = table_of_seeds(), SEEDED | {"logprobs": 0, "column": "how"}
    wanted = sampled(tmp_path_factory.mktemp("first") / "run", tiny_model, rows, sampling)
    assert len(set(texts_of(wanted))) == len(rows)
    numbers = count()

    @settings(max_examples=3, deadline=None, phases=[Phase.generate])
    @given(
        st.permutations(rows),
        st.sampled_from([1e-5, 1e-3, 45.0]),
        st.sampled_from([8, 24, 512]),
        st.sampled_from(["none", "multi_level"]),
        st.integers(0, 3),
    )
    def check(order: Rows, shard_seconds: float, step_tokens: int, sharing: str, scored_shards: int) -> None:
        folder = tmp_path_factory.mktemp("again") / str(next(numbers))
        folder.mkdir()
        limits = {"kv_cache_memory": "16MiB", "max_num_batched_tokens": step_tokens, "sharing": sharing}
        engine = {"device": "cpu"} | limits
        job = job_on(folder, tiny_model, order, sampling, engine=engine, shard_seconds=shard_seconds)
        plan_alone(job, scored_shards)
        run_steps(job)
        assert [drawn_texts(row) for row in ask(job.output_folder, SAMPLES)] == [drawn_texts(row) for row in wanted]

    check()
