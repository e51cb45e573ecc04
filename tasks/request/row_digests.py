"""A digest of all that a source row's request is made of: rows of equal digests have the same request, or error.

With it, rows of which a run before made requests need neither be rendered nor encoded again (`tasks.known_rows`).
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.grammar.grammar import GRAMMAR_VERSION
from engine.model.model_shape import max_model_len
from tasks.request.ask import Ask
from tasks.request.columns import JobColumns
from tasks.request.task_types import task_type_of
from tasks.source.source_rows import SourceBatch
from tasks.storage.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What renders and encodes a row, besides our own code: `tasks.storage.run.FORMAT` is that one's version.
_VERSIONS = tuple(map(version, ("trunkline", "transformers", "tokenizers", "jinja2")))
# What a template may ask for that is another thing the day after.
_CLOCK = "strftime_now"


class RowDigests:
    """`key` names what makes requests of rows: digests of two keys say nothing of each other."""

    def __init__(self, run: Run, columns: JobColumns, tokenizer: "PreTrainedTokenizerFast") -> None:
        job = run.job
        self.columns = sorted({*columns.prompt, *job.columns.values()})
        # A row that is drawn afresh has its id in its name, and any row may be where rows say themselves how.
        asks_itself = job.task.column is not None or job.sampling.column is not None
        self._takes_ids = asks_itself or task_type_of(job.task).is_drawn_afresh(Ask(job.task, job.sampling))
        template = repr(tokenizer.chat_template if run.chat_template is None else run.chat_template)
        decisive = [
            *_VERSIONS,
            *(job.model_dump_json(include={part}) for part in ("prompt", "task", "sampling")),
            str([columns.schema.field(name).with_nullable(True) for name in self.columns]),
            repr([columns.schema.field(name).metadata for name in self.columns]),
            {name: files.fingerprint for name, files in run.adapters.items()},
            job.model.adapter,
            run.decisive,
            run.max_tokens,
            max_model_len(run.shape, run.config),
            GRAMMAR_VERSION,
            template,
            date.today().isoformat() if _CLOCK in template else None,
        ]
        digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
        # A folder that a row names may hold another adapter each time.
        self.key = None if job.model.adapter_column is not None else digest

    def of(self, batch: SourceBatch, custom_ids: Sequence[str]) -> list[bytes]:
        """A digest of 16 bytes for each row."""
        columns = [_texts(batch, column) for column in self.columns]
        if self._takes_ids:
            columns.append([name.encode() for name in custom_ids])
        return [_digest(row) for row in zip(*columns, strict=True)] if columns else [_digest(())] * batch.num_rows


def _texts(batch: SourceBatch, column: str) -> list[bytes | None]:
    """The column's values, no two of which look alike."""
    values = batch.data.column(column)
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        return list(values.cast(pa.binary()).to_pylist())
    if pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type):
        return list(values.cast(pa.large_binary()).to_pylist())
    return [repr(cell).encode("utf-8", "surrogatepass") for cell in batch.values(column)]


def _digest(row: Sequence[bytes | None]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in row:
        digest.update(b"-" if value is None else b"%d:" % len(value))
        digest.update(value or b"")
    return digest.digest()
