"""What a precision does to answers, on outputs made by hand and on the tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from engine.request import LabelScore, PromptLogprobs, RequestOutput, TokenLogprobs
from flows.show_drift import drift_facts
from tasks.drift import compare, measure_drift
from tasks.job.job_file import parse_job
from tasks.request.task_types import TASK_TYPES

LOGPROB = "log-probability difference"
CHOICE, GENERATE = TASK_TYPES["choice"], TASK_TYPES["generate"]


def labelled(name: str, *logprobs: float) -> RequestOutput:
    return RequestOutput(name, "scored", 3, label_scores=tuple(LabelScore(value, False) for value in logprobs))


def text(name: str, *tokens: tuple[int, float]) -> RequestOutput:
    logprobs = tuple(TokenLogprobs(*token) for token in tokens)
    return RequestOutput(name, "length", 3, token_ids=tuple(token for token, _ in tokens), logprobs=logprobs)


def failed(name: str) -> RequestOutput:
    return RequestOutput(name, "error", 3, error_type="NON_FINITE")


def test_labels_agree_where_the_best_is_the_same() -> None:
    before = [labelled("a", -1.0, -2.0), labelled("b", -1.0, -1.5), labelled("c", -3.0, -4.0)]
    after = [failed("c"), labelled("b", -2.0, -1.5), labelled("a", -1.0, -2.5)]
    drift = compare(dict.fromkeys("abc", CHOICE), "float32", "int8", before, after)
    assert (drift.requests, drift.failed, drift.same) == (2, 1, {"label agreement": 0.5})
    assert (drift.moved[LOGPROB].mean, drift.moved[LOGPROB].most) == pytest.approx((1.5 / 4, 1.0))
    facts = dict(drift_facts(drift))
    assert facts["label agreement"] == "50.0%"
    assert facts["rows"] == "2 (1 more failed)"
    assert facts["log-probability difference"] == "0.3750 mean, 1.0000 max"


def test_tokens_are_compared_up_to_the_first_difference() -> None:
    before = [text("a", (1, -0.5), (2, -0.5), (3, -9.0)), text("b", (7, -1.0))]
    after = [text("a", (1, -0.25), (2, -0.5), (4, -1.0)), text("b", (7, -1.0))]
    drift = compare(dict.fromkeys("ab", GENERATE), "float32", "bfloat16", before, after)
    assert drift.same == {"rows with the same tokens": 0.5, "tokens before a difference": 0.75}
    assert (drift.moved[LOGPROB].mean, drift.moved[LOGPROB].most) == pytest.approx((0.25 / 3, 0.25))


def read(name: str, *logprobs: float, last: float | None = None) -> RequestOutput:
    """Tokens of a prompt, greedy where they are likely, and of a window the last one as a label."""
    found = np.array(logprobs, np.float32)
    none = np.empty((len(found), 0))
    tokens = np.arange(len(found), dtype=np.int32)
    prompt = PromptLogprobs(1, tokens, found, found > -1, none.astype(np.int32), none.astype(np.float32))
    scores = () if last is None else (LabelScore(last, False),)
    return RequestOutput(name, "scored", 3, label_scores=scores, prompt_logprobs=prompt)


def test_prompts_are_compared_token_by_token() -> None:
    before, after = [read("a", -0.5, -2.0), read("b", -0.5)], [read("a", -0.25, -2.0), read("b", -1.5)]
    moved = TASK_TYPES["perplexity"].compare(list(zip(before, after, strict=True)))
    assert moved.differences.tolist() == [0.25, 0.0, 1.0]
    assert moved.same == {"tokens greedy in both or in neither": pytest.approx(2 / 3)}
    pair = read("a", -0.5, last=-3.0), read("a", -0.25, last=-2.0)
    assert TASK_TYPES["loglikelihood_rolling"].compare([pair]).differences.tolist() == [0.25, 1.0]


@pytest.mark.parametrize("name", ["classify", "score"])
def test_variants_are_compared_one_by_one(name: str) -> None:
    pairs = [(labelled("a", -1.0, -2.0, -3.0), labelled("a", -1.0, -0.5, -3.0)), (labelled("b", -1), labelled("b", -2))]
    moved = TASK_TYPES[name].compare(pairs)
    assert moved.differences.tolist() == [0.0, 1.5, 0.0, 1.0]
    assert moved.same == {"same likeliest variant": 0.5}


def test_types_are_compared_each_by_itself() -> None:
    before = [labelled("a", -1.0, -2.0), labelled("b", -1.0, -2.0)]
    after = [labelled("a", -1.0, -0.5), labelled("b", -1.0, -2.0)]
    types = {"a": TASK_TYPES["classify"], "b": TASK_TYPES["score"]}
    drift = compare(types, "float32", "int8", before, after)
    assert drift.same == {"classify: same likeliest variant": 0.0, "score: same likeliest variant": 1.0}
    assert list(drift.moved) == [LOGPROB]
    assert (drift.moved[LOGPROB].mean, drift.moved[LOGPROB].most) == (1.5 / 4, 1.5)


def test_nothing_in_both_precisions_is_an_error() -> None:
    with pytest.raises(UserError, match="none of the sample"):
        compare({"a": CHOICE}, "float32", "int8", [failed("a")], [labelled("a", -1.0)])


@pytest.fixture
def content(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = [{"text": f"Case {i} of many. Good or bad?" if i != 4 else None} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return {
        "name": "drift",
        "source": {"parquet": str(tmp_path / "rows.parquet")},
        "prompt": {"column": "text"},
        "task": {"type": "choice", "labels": [" good", " bad"]},
        "model": {"path": str(tiny_model), "quantization": "int8"},
        "engine": {"device": "cpu", "kv_cache_memory": "16MiB"},
        "output": str(tmp_path / "out"),
    }


def test_a_choice_job_moves_a_little_and_nothing_is_written(content: dict[str, Any], tmp_path: Path) -> None:
    drift = measure_drift(parse_job(content, "test"), rows=12)
    assert (drift.full, drift.chosen) == ("float32", "int8 over float32")
    assert (drift.requests, drift.failed) == (12, 0)
    assert drift.same["label agreement"] >= 0.5
    assert 0 < drift.moved[LOGPROB].mean < drift.moved[LOGPROB].most < 5
    assert measure_drift(parse_job(content, "test"), rows=12) == drift
    assert not (tmp_path / "out").exists()


def test_a_generating_job_is_held_to_its_greedy_tokens(content: dict[str, Any]) -> None:
    content["task"] = {"type": "generate"}
    content["model"] |= {"quantization": "none", "dtype": "bfloat16"}
    content["sampling"] = {"max_tokens": 6, "temperature": 1.0, "ignore_eos": True}
    drift = measure_drift(parse_job(content, "test"), rows=1000)
    assert (drift.full, drift.chosen, drift.requests) == ("float32", "bfloat16", 29)
    same_rows, same_tokens = drift.same.values()
    assert 0 <= same_rows <= same_tokens <= 1
    assert same_tokens > 0.2
    assert 0 < drift.moved[LOGPROB].mean < drift.moved[LOGPROB].most


def test_full_precision_has_nothing_to_be_held_to(content: dict[str, Any]) -> None:
    content["model"].pop("quantization")
    with pytest.raises(UserError, match=r"model\.quantization=int8"):
        measure_drift(parse_job(content, "test"), rows=5)
    with pytest.raises(UserError, match="--rows 0"):
        measure_drift(parse_job(content, "test"), rows=0)
