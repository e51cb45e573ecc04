"""Result parts: one Parquet row a request, whatever became of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.failpoint import failpoint
from engine.request import RequestOutput
from tasks.storage.commit import open_private, sha256_of
from tasks.storage.output_folder import OutputFolder
from tasks.storage.shard_manifest import PartFile
from tasks.storage.statements import literals, statement

# Texts of one prompt, likeliest first; `index` counts them as they were drawn.
OUTPUTS = pa.list_(
    pa.struct(
        [
            ("index", pa.int32()),
            ("text", pa.string()),
            ("reasoning", pa.string()),
            ("finish_reason", pa.string()),
            ("cumulative_logprob", pa.float64()),
            ("logprobs", pa.string()),
        ]
    )
)
LABEL_MAP = pa.map_(pa.string(), pa.float64())

PART_SCHEMA = pa.schema(
    [
        ("request_hash", pa.string()),
        ("status", pa.string()),
        ("task", pa.string()),
        ("generated_text", pa.string()),
        ("reasoning", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("cumulative_logprob", pa.float64()),
        ("logprobs", pa.string()),
        ("outputs", OUTPUTS),
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
        ("min_margin", pa.float64()),
        ("embedding", pa.list_(pa.float32())),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
        ("run_id", pa.string()),
        ("shard_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """What a result must say besides its outputs: `task` is its type's name, `ask` all that it asks, as JSON.

    `label_texts` are in the order of the request's labels; `prompt_tokens` are the row's own.
    """

    request_hash: str
    task: str
    ask: str
    label_texts: tuple[str, ...]
    prompt_tokens: int
    attempts: int


# A task type's own columns of a result, out of what was asked and its outputs, none of which is an error.
Answer = Callable[[StoredRequest, Sequence[RequestOutput]], dict[str, Any]]


def newest_results(files: Sequence[str]) -> str:
    """SQL for each request's newest result in these parts."""
    tries = statement("views/tries", files=literals(files)) if files else statement("views/no_parts")
    return statement("views/newest", parts=all_results(files), tries=tries)


def all_results(files: Sequence[str]) -> str:
    """SQL for every result in these parts."""
    no_parts = statement("views/no_parts")
    return statement("views/parts", no_parts=no_parts, files=literals(files)) if files else no_parts


def to_part(
    asked: Sequence[StoredRequest],
    outputs: Sequence[Sequence[RequestOutput]],
    answer: Answer,
    run_id: str,
    shard_id: str,
) -> pa.Table:
    """One row for each that was asked, in that order; `outputs` are those of its requests."""
    own = {"run_id": run_id, "shard_id": shard_id}
    rows = [_row(one, row, answer) | own for one, row in zip(asked, outputs, strict=True)]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def _row(asked: StoredRequest, outputs: Sequence[RequestOutput], answer: Answer) -> dict[str, Any]:
    first = outputs[0]
    assert first.request_id == asked.request_hash, (first.request_id, asked.request_hash)
    failed = next((output for output in outputs if output.finish_reason == "error"), None)
    computed = sum(output.prompt_tokens - output.num_cached_tokens for output in outputs)
    row: dict[str, Any] = {
        "request_hash": asked.request_hash,
        "status": "ok",
        "task": asked.task,
        "finish_reason": first.finish_reason,
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": sum(len(output.token_ids) for output in outputs),
        # A row that is computed in pieces may compute more than it has.
        "cached_tokens": max(asked.prompt_tokens - computed, 0),
        "attempts": asked.attempts,
    }
    if failed is None:
        return row | answer(asked, outputs)
    said = {"error_type": failed.error_type or "ERROR", "error_message": failed.error_message}
    return row | {"status": "error", "finish_reason": "error", "completion_tokens": 0, "cached_tokens": 0} | said


def join_parts(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of all, one after the other; NULL in the columns that came after an earlier version's part."""
    return pa.concat_tables([PART_SCHEMA.empty_table(), *parts], promote_options="default")


def stage_part(folder: OutputFolder, shard_id: str, part: pa.Table) -> tuple[Path, PartFile]:
    """A part that has no name yet, and the one that it is to have, which is of its content."""
    staged = folder.staged("part.parquet")
    with open_private(staged) as file:
        pq.write_table(part, file, compression="zstd")
    digest = sha256_of(staged)
    failpoint("part.staged")
    return staged, PartFile(f"{shard_id}-{digest[:16]}.parquet", digest, part.num_rows, staged.stat().st_size)


def commit_part(folder: OutputFolder, staged: Path, part: PartFile) -> None:
    """One that is there under this name, from a try that went no further, is this part."""
    folder.commit(staged, folder.parts / part.name)
