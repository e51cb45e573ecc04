"""Result parts: one Parquet row a request, whatever became of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.request import RequestOutput
from tasks.storage.statements import literals, statement

LABEL_MAP = pa.map_(pa.string(), pa.float64())

PART_SCHEMA = pa.schema(
    [
        ("request_hash", pa.string()),
        ("status", pa.string()),
        ("generated_text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("cumulative_logprob", pa.float64()),
        ("logprobs", pa.string()),
        ("prompt_logprobs", pa.string()),
        ("label", pa.string()),
        ("label_norm", pa.string()),
        ("label_probs", LABEL_MAP),
        ("label_logprobs", LABEL_MAP),
        ("missing_mass", pa.float64()),
        ("score", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("logprob", pa.float64()),
        ("is_greedy", pa.bool_()),
        ("perplexity", pa.float64()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
        ("run_id", pa.string()),
        ("shard_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """What a result must say besides its output. `label_texts` are in the order of the request's labels."""

    request_hash: str
    label_texts: tuple[str, ...]
    attempts: int


# A task type's own columns of a result, out of its labels' texts and its output.
Answer = Callable[[Sequence[str], RequestOutput], dict[str, Any]]


def newest_results(files: Sequence[str]) -> str:
    """SQL for each request's newest result in these parts."""
    no_parts = statement("views/no_parts")
    parts = statement("views/parts", no_parts=no_parts, files=literals(files)) if files else no_parts
    return statement("views/newest", parts=parts)


def to_part(
    asked: Sequence[StoredRequest], outputs: Sequence[RequestOutput], answer: Answer, run_id: str, shard_id: str
) -> pa.Table:
    """One row for each request, in the order asked."""
    rows = [_row(one, output, answer, run_id, shard_id) for one, output in zip(asked, outputs, strict=True)]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def _row(asked: StoredRequest, output: RequestOutput, answer: Answer, run_id: str, shard_id: str) -> dict[str, Any]:
    assert output.request_id == asked.request_hash, (output.request_id, asked.request_hash)
    failed = output.finish_reason == "error"
    row: dict[str, Any] = {
        "request_hash": asked.request_hash,
        "status": "error" if failed else "ok",
        "finish_reason": output.finish_reason,
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": len(output.token_ids),
        "cached_tokens": output.num_cached_tokens,
        "attempts": asked.attempts,
        "run_id": run_id,
        "shard_id": shard_id,
    }
    if failed:
        return row | {"error_type": output.error_type or "ERROR", "error_message": output.error_message}
    return row | answer(asked.label_texts, output)
