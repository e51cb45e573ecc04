"""Rows of a plan's requests as columns: what planning reads, without a Python object a row where rows ask alike."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.planning.prompts import Ints, Prompts
from engine.planning.request_table import NO_LABELS, NO_LOGPROBS, RequestTable, number_label_sets
from engine.request import TokenIds
from tasks.request.ask import parse_ask
from tasks.request.requests import row_requests, to_requests
from tasks.request.task_type import RowRequest
from tasks.request.task_types import task_type_of
from tasks.storage.token_arrays import from_lists_array


class PlannedRows(NamedTuple):
    """The engine's requests for rows that have `row_sizes` of them each."""

    requests: RequestTable
    row_sizes: Ints


def to_columns(rows: pa.RecordBatch) -> PlannedRows:
    """The requests that `to_requests` gives for the rows of `pending.parquet`."""
    texts = rows.column("ask").dictionary_encode()
    asks = [parse_ask(text) for text in texts.dictionary.to_pylist()]
    if not all(task_type_of(ask.task).asks_once(ask) for ask in asks):
        requests = [*to_requests(rows)]
        sizes = np.array([len(own) for own in requests], dtype=np.int64)
        return PlannedRows(RequestTable.of([*chain.from_iterable(requests)]), sizes)
    return PlannedRows(_one_a_row(rows, texts), np.ones(rows.num_rows, dtype=np.int64))


def _one_a_row(rows: pa.RecordBatch, asks: pa.DictionaryArray) -> RequestTable:
    """Rows of one ask and as many tokens of text differ in their id, prompt, labels and adapter alone: so the first of
    them tells what the others ask.
    """
    lists = rows.column("prompt_token_ids")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    prompts = Prompts(lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])
    room = rows.column("max_tokens").to_numpy().astype(np.int64)
    ask = asks.indices.to_numpy().astype(np.int64)
    _, firsts, kind = np.unique(ask * (room.max(initial=0) + 1) + room, return_index=True, return_inverse=True)
    known = [parse_ask(text) for text in asks.dictionary.to_pylist()]
    label_set, label_sets = _label_sets(rows.column("labels"))
    max_tokens, own_labels, logprobs_from = np.zeros((3, len(firsts)), dtype=np.int64)
    for place, row in enumerate(firsts.tolist()):
        labels, texts = label_sets[label_set[row]], tuple(rows.column("label_texts")[row].as_py())
        (request,) = row_requests("", RowRequest(prompts[row], int(room[row]), labels, texts), known[ask[row]])
        assert request.labels is None or len(request.labels) == len(labels), known[ask[row]]
        max_tokens[place] = request.max_tokens
        own_labels[place] = request.labels is not None
        first = request.prompt_logprobs_from
        logprobs_from[place] = NO_LOGPROBS if first is None else first
    adapters = rows.column("adapter").dictionary_encode(null_encoding="encode")
    return RequestTable(
        request_ids=rows.column("request_hash").to_pylist(),
        prompts=prompts,
        max_tokens=max_tokens[kind],
        label_set=np.where(own_labels[kind], label_set, NO_LABELS),
        label_sets=label_sets,
        logprobs_from=logprobs_from[kind],
        adapter=adapters.indices.to_numpy().astype(np.int64),
        adapters=tuple(adapters.dictionary.to_pylist()),
    )


def _label_sets(labels: pa.ListArray) -> tuple[Ints, Sequence[tuple[TokenIds, ...]]]:
    """A number for each row's labels, and the labels of each number."""
    if len(labels) and _all_equal(labels):
        only = tuple(np.array(label, dtype=np.int32) for label in labels[0].as_py())
        return np.zeros(len(labels), dtype=np.int64), (only,)
    return number_label_sets(from_lists_array(labels))


def _all_equal(labels: pa.ListArray) -> bool:
    counts, texts = labels.value_lengths().to_numpy(), labels.flatten()
    if (counts != counts[0]).any():
        return False
    lengths = texts.value_lengths().to_numpy().reshape(len(labels), -1)
    if (lengths != lengths[0]).any():
        return False
    tokens = texts.flatten().to_numpy().reshape(len(labels), -1)
    return bool((tokens == tokens[0]).all())
