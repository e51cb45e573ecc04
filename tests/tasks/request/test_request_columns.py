"""Columns of planned rows: those of the requests that the engine gets for the same rows, for every type."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.planning.prompts import Prompts
from engine.planning.request_table import NO_LABELS, RequestTable
from engine.request import Request
from tasks.job.sampling import Sampling
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.items import NEXT_ITEM
from tasks.request.request_columns import to_columns
from tasks.request.requests import to_requests
from tasks.request.task_types import TASK_TYPES
from tasks.storage.token_arrays import TOKEN_LIST, TOKEN_LISTS

Labels = list[list[int]]
PROMPTS = [[5, 6, 7], [5], [5, 6, 7, 8], [9, 9]]
ONE: Labels = [[1], [2, 3]]
FEW: list[Labels] = [ONE, [[1], [2, 4]], ONE, [[3]]]
NONE: list[Labels] = [[]] * 4
YES, NO = ["yes"], ["yes", "no"]


def ask(task: str, sampling: dict[str, Any] | None = None, **keys: Any) -> str:
    return Ask(Task(type=task, **keys), Sampling(**(sampling or {}))).text  # type: ignore[arg-type]


def rows_of(
    asks: Sequence[str],
    labels: Sequence[Labels] = NONE,
    texts: Sequence[list[str]] = ([], [], [], []),
    adapters: Sequence[str | None] = (None,) * 4,
    room: Sequence[int] = (0,) * 4,
) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "request_hash": pa.array(["d", "a", "c", "b"]),
            "prompt_token_ids": pa.array(PROMPTS, TOKEN_LIST),
            "labels": pa.array(labels, TOKEN_LISTS),
            "label_texts": pa.array(texts, pa.list_(pa.string())),
            "max_tokens": pa.array(room, pa.int32()),
            "ask": pa.array(asks),
            "adapter": pa.array(adapters, pa.string()),
        }
    )


GENERATE = ask("generate", {"max_tokens": 9})
SEVERAL = ask("generate", {"n": 2, "temperature": 1.0, "seed": 3})
CONTINUED = ask("loglikelihood", continuation_column="x")
SCORED = ask("generate", {"max_tokens": 9, "prompt_logprobs": 0})
BATCHES = {
    "generate": rows_of([GENERATE] * 4, room=[9, 3, 9, 1], adapters=[None, "x", "x", None]),
    "generate, prompt log-probabilities": rows_of([GENERATE, SCORED, SCORED, GENERATE], room=[9, 9, 3, 9]),
    "generate, several": rows_of([SEVERAL, *[GENERATE] * 3], room=[4] * 4),
    "choice": rows_of([ask("choice", labels=NO)] * 4, [ONE] * 4, [NO] * 4),
    "choice, labels a row": rows_of([ask("choice", labels_column="x")] * 4, FEW, [NO, NO, NO, YES], adapters=["x"] * 4),
    "classify": rows_of([ask("classify", labels=NO)] * 4, [ONE] * 4, [NO] * 4),
    "score": rows_of([ask("score")] * 4, [ONE] * 4, [NO] * 4),
    "score, items": rows_of(
        [ask("score", items=["one", "two"])] * 4, [[[1], [2], [7, 7], [1], [2]]] * 4, [[*NO, NEXT_ITEM, *NO]] * 4
    ),
    "loglikelihood": rows_of([CONTINUED] * 4, [[[row, 2]] for row in range(4)], [YES] * 4),
    "loglikelihood_rolling": rows_of([ask("loglikelihood_rolling")] * 4, [[[4, 4, 4, 4, 4, 4]]] * 4, [YES] * 4),
    "perplexity": rows_of([ask("perplexity")] * 4),
    "embed": rows_of([ask("embed")] * 4),
    "mixed": rows_of(
        [GENERATE, ask("perplexity"), ask("choice", labels=NO), ask("embed")],
        [[], [], ONE, []],
        [[], [], NO, []],
        room=[9, 0, 0, 0],
    ),
}


def described(table: RequestTable) -> list[tuple[Any, ...]]:
    """What each request is in the table, whatever its sets are numbered."""
    labels = [None if one == NO_LABELS else [ids.tolist() for ids in table.label_sets[one]] for one in table.label_set]
    adapters = [table.adapters[one] for one in table.adapter]
    prompts = [table.prompts[row].tolist() for row in range(len(table))]
    columns = (table.request_ids, prompts, table.max_tokens.tolist(), labels, table.logprobs_from.tolist(), adapters)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("name", BATCHES)
def test_columns_are_those_of_the_requests(name: str) -> None:
    rows = BATCHES[name]
    requests = [*to_requests(rows)]
    found, sizes = to_columns(rows)
    assert sizes.tolist() == [len(own) for own in requests]
    expected = RequestTable.of([request for own in requests for request in own])
    assert described(found) == described(expected)
    assert sorted(found.names) == sorted(expected.names)


def test_every_type_is_here() -> None:
    assert {name.split(",")[0] for name in BATCHES} - {"mixed"} == set(TASK_TYPES)


def test_a_part_of_a_batch() -> None:
    rows = BATCHES["choice, labels a row"].slice(1, 2)
    assert described(to_columns(rows).requests) == described(RequestTable.of([one for (one,) in to_requests(rows)]))


def test_no_column_is_forgotten() -> None:
    """`described` tells all that a table has."""
    assert len(fields(RequestTable)) == 8
    assert described(RequestTable.of([Request("a", np.array([1, 2], dtype=np.int32), labels=())]))[0][3] == []
    assert isinstance(to_columns(BATCHES["embed"]).requests.prompts, Prompts)
