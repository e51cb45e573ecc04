"""A batch of source rows to requests: rendered, encoded, checked against the context, named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.request import Request
from engine.sampling_params import SamplingParams
from tasks.request.encode import Encoder
from tasks.request.labels import LabelEncoder
from tasks.request.prompt_text import PromptText
from tasks.request.prompts import PromptRenderer
from tasks.request.request_hash import RequestHasher
from tasks.request.special_tokens import has_marks
from tasks.request.task_type import RowReader, RowRequest, TaskType
from tasks.request.task_types import task_type_of
from tasks.source.row_error import UNKNOWN_TOKEN, RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.run import Run
from tasks.storage.token_arrays import from_list_array, from_lists_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, eq=False)
class NewRequest:
    """A row's request, and its name."""

    request_hash: str
    asked: RowRequest


class RequestBuilder:
    """Rows that cannot be scored come out as their error. `columns` are the prompt's, of `find_columns`.

    `quoting_rows` counts those so far whose prompt holds a special token's text as text.
    """

    def __init__(self, run: Run, columns: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> None:
        self._task_type = task_type_of(run.job)
        self._vocab_size = run.shape.vocab_size
        encoder = Encoder(tokenizer, run.max_tokens)
        self._renderer = PromptRenderer(run.job.prompt, columns, tokenizer, encoder.special_tokens)
        labels = LabelEncoder(
            encoder,
            self._task_type.label_word,
            self._task_type.label_error,
            parses_special=run.job.prompt.parses_special,
        )
        self._reader = RowReader(run.job, encoder, labels, run.max_tokens)
        self._hasher = RequestHasher(run)
        self.quoting_rows = 0

    def build(self, batch: SourceBatch, custom_ids: Sequence[str]) -> list[NewRequest | RowError]:
        prompts = self._renderer.render(batch)
        self.quoting_rows += sum(isinstance(one, PromptText) and has_marks(one.text) for one in prompts)
        read = self._task_type.read(self._reader, batch, prompts)
        return [self._named(one, custom_id) for one, custom_id in zip(read, custom_ids, strict=True)]

    def _named(self, read: RowRequest | RowError, custom_id: str) -> NewRequest | RowError:
        if isinstance(read, RowError):
            return read
        if not self._is_known(read):
            said = (
                f"the prompt or a {self._task_type.label_word} holds a special token that the model has no embedding of"
            )
            return RowError(UNKNOWN_TOKEN, said)
        return NewRequest(self._hasher(read, custom_id), read)

    def _is_known(self, request: RowRequest) -> bool:
        """Whether the model has an embedding of every token."""
        if self._reader.encoder.largest_id < self._vocab_size:
            return True
        return all((ids < self._vocab_size).all() for ids in (request.prompt_token_ids, *request.labels))


def to_requests(batch: pa.RecordBatch, task_type: TaskType, params: SamplingParams) -> Iterator[Request]:
    """The engine's requests, out of rows of `pending.parquet` or `requests.parquet`; without `adapter`, of none."""
    has_adapters = "adapter" in batch.schema.names
    columns = (
        batch.column("request_hash").to_pylist(),
        from_list_array(batch.column("prompt_token_ids")),
        from_lists_array(batch.column("labels")),
        batch.column("max_tokens").to_pylist(),
        batch.column("adapter").to_pylist() if has_adapters else [None] * batch.num_rows,
    )
    by_room: dict[int, SamplingParams] = {}
    for name, prompt, labels, room, adapter in zip(*columns, strict=True):
        if room not in by_room:
            by_room[room] = replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))
        request = task_type.request(name, prompt, labels, by_room[room])
        yield request if adapter is None else replace(request, adapter=adapter)
