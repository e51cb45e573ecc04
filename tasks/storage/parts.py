"""Result parts: one Parquet row a request, whatever became of it."""

import json
import math
from collections.abc import Sequence
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
        ("label", pa.string()),
        ("label_probs", LABEL_MAP),
        ("label_logprobs", LABEL_MAP),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
        ("run_id", pa.string()),
        ("shard_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a result must say besides its output. `label_texts` are in the order of the request's labels."""

    request_hash: str
    label_texts: tuple[str, ...]
    attempts: int


def newest_results(files: Sequence[str]) -> str:
    """SQL for each request's newest result in these parts."""
    parts = f"SELECT * FROM read_parquet({literals(files)})" if files else statement("views/no_parts")
    return statement("views/newest", parts=parts)


def to_part(asked: Sequence[Asked], outputs: Sequence[RequestOutput], run_id: str, shard_id: str) -> pa.Table:
    """One row for each request, in the order asked."""
    rows = [_row(one, output, run_id, shard_id) for one, output in zip(asked, outputs, strict=True)]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def _row(asked: Asked, output: RequestOutput, run_id: str, shard_id: str) -> dict[str, Any]:
    assert output.request_id == asked.request_hash, (output.request_id, asked.request_hash)
    row: dict[str, Any] = {
        "request_hash": asked.request_hash,
        "status": "error" if output.finish_reason == "error" else "ok",
        "finish_reason": output.finish_reason,
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": len(output.token_ids),
        "cached_tokens": output.num_cached_tokens,
        "attempts": asked.attempts,
        "run_id": run_id,
        "shard_id": shard_id,
    }
    if output.finish_reason == "error":
        return row | {"error_type": output.error_type or "ERROR", "error_message": output.error_message}
    if output.label_scores is not None:
        return row | _choice(asked.label_texts, [score.logprob for score in output.label_scores])
    return row | {
        "generated_text": output.text,
        "token_ids": list(output.token_ids),
        "cumulative_logprob": output.cumulative_logprob,
        "logprobs": _logprobs(output),
    }


def _choice(texts: Sequence[str], logprobs: Sequence[float]) -> dict[str, Any]:
    """The likeliest label, the first of equals; probabilities are normalised over the labels."""
    best = max(range(len(texts)), key=logprobs.__getitem__)
    weights = [math.exp(logprob - logprobs[best]) for logprob in logprobs]
    return {
        "label": texts[best],
        "cumulative_logprob": logprobs[best],
        "label_probs": [(text, weight / sum(weights)) for text, weight in zip(texts, weights, strict=True)],
        "label_logprobs": list(zip(texts, logprobs, strict=True)),
    }


def _logprobs(output: RequestOutput) -> str | None:
    if output.logprobs is None:
        return None
    tokens = [{"token_id": one.token_id, "logprob": one.logprob, "top": one.top} for one in output.logprobs]
    return json.dumps(tokens)
