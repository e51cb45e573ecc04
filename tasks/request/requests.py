"""A batch of source rows to requests: rendered, encoded, checked against the context, named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.errors import UserError
from engine.grammar.grammar import GrammarError
from engine.grammar.vocabulary import Vocabulary
from engine.model.model_shape import max_model_len
from engine.request import Request
from tasks.request.adapters import AdapterReader
from tasks.request.ask import Ask, parse_ask
from tasks.request.encode import Encoder
from tasks.request.labels import LabelEncoder
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.prompts import PromptRenderer
from tasks.request.reasoning import ReasoningFinder
from tasks.request.request_hash import RequestHasher
from tasks.request.row_asks import AskReader
from tasks.request.special_tokens import has_marks
from tasks.request.task_type import RowReader, RowRequest
from tasks.request.task_types import task_type_of
from tasks.source.row_error import UNKNOWN_TOKEN, RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.run import Run
from tasks.storage.token_arrays import from_list_array, from_lists_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, eq=False)
class NewRequest:
    """A row's request, its name, and what it asks."""

    request_hash: str
    asked: RowRequest
    ask: Ask


class RequestBuilder:
    """Rows that cannot be scored come out as their error. `columns` are the prompt's, of `find_columns`.

    `quoting_rows` counts those so far whose prompt holds a special token's text as text.
    """

    def __init__(self, run: Run, columns: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> None:
        self._vocab_size = run.shape.vocab_size
        self._most_tokens = run.max_tokens, max_model_len(run.shape, run.config)
        self._prompt = run.job.prompt
        self._adapters = AdapterReader(run)
        self._encoder = Encoder(tokenizer, run.max_tokens, truncate=run.job.prompt.truncate_prompt_tokens)
        self._renderer = PromptRenderer(
            run.job.prompt, columns, tokenizer, self._encoder.special_tokens, run.chat_template
        )
        self._reasoning = ReasoningFinder(tokenizer, self._encoder.special_tokens, run.chat_template)
        self._readers: dict[str, RowReader] = {}
        self._asks = AskReader(run.job, run.shape.vocab_size, run.shape.hidden_size)
        self._hasher = RequestHasher(run)
        _refuse_bad_grammar(run, tokenizer)
        self.quoting_rows = 0

    def build(self, batch: SourceBatch, custom_ids: Sequence[str]) -> list[NewRequest | RowError]:
        asks = self._asks.read(batch)
        adapters = self._adapters.read(batch)
        rendered = self._renderer.render(batch)
        self.quoting_rows += sum(isinstance(one, PromptText) and has_marks(one.text) for one in rendered)
        prompts = [
            adapter if isinstance(adapter, RowError) else prompt
            for adapter, prompt in zip(adapters, rendered, strict=True)
        ]
        built: list[NewRequest | RowError | None] = [one if isinstance(one, RowError) else None for one in asks]
        for rows in _by_task(asks):
            good = [ask for row in rows if not isinstance(ask := asks[row], RowError)]
            read = self._read(batch.choose(rows), [prompts[row] for row in rows], good)
            for row, one, ask in zip(rows, read, good, strict=True):
                adapter = adapters[row]
                if not isinstance(one, RowError) and not isinstance(adapter, RowError):
                    one = replace(one, adapter=adapter)
                built[row] = self._named(one, self._reasoning.resolved(ask, prompts[row]), custom_ids[row])
        return [one for one in built if one is not None]

    def _read(
        self, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        """Rows of one task."""
        task_type = task_type_of(asks[0].task)
        if task_type.name not in self._readers:
            labels = LabelEncoder(
                self._encoder,
                task_type.label_word,
                task_type.label_error,
                parses_special=self._prompt.parses_special,
                drops=task_type.drops_labels,
            )
            self._readers[task_type.name] = RowReader(self._encoder, labels, self._renderer, *self._most_tokens)
        return task_type.read(self._readers[task_type.name], batch, prompts, asks)

    def _named(self, read: RowRequest | RowError, ask: Ask, custom_id: str) -> NewRequest | RowError:
        if isinstance(read, RowError):
            return RowError(read.type, read.message)  # and no more, whatever else was known of the row
        if not self._is_known(read):
            word = task_type_of(ask.task).label_word
            said = f"the prompt or a {word} holds a special token that the model has no embedding of"
            return RowError(UNKNOWN_TOKEN, said)
        return NewRequest(self._hasher(read, ask, custom_id), read, ask)

    def _is_known(self, request: RowRequest) -> bool:
        """Whether the model has an embedding of every token."""
        if self._encoder.largest_id < self._vocab_size:
            return True
        return all((ids < self._vocab_size).all() for ids in (request.prompt_token_ids, *request.labels))


def _refuse_bad_grammar(run: Run, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raises UserError where this model's tokens can write nothing of what the job asks its answers to be."""
    structured = run.job.sampling.structured_outputs
    if structured is None:
        return
    try:
        Vocabulary(tokenizer, run.shape.vocab_size, run.shape.eos_token_ids).machine(structured.asked())
    except GrammarError as problem:
        raise UserError(f"sampling.structured_outputs: {problem}") from None


def _by_task(asks: Sequence[Ask | RowError]) -> list[list[int]]:
    """Rows of equal tasks together; those whose ask is an error are of none."""
    rows: dict[int, list[int]] = {}
    for row, ask in enumerate(asks):
        if not isinstance(ask, RowError):
            rows.setdefault(id(ask.task), []).append(row)
    return list(rows.values())


def to_requests(batch: pa.RecordBatch, read_ask: Callable[[str], Ask] = parse_ask) -> Iterator[tuple[Request, ...]]:
    """The engine's requests for each row of `pending.parquet` or `requests.parquet`; `read_ask` is of its `ask`."""
    texts = batch.column("ask").dictionary_encode()
    asks = [read_ask(text) for text in texts.dictionary.to_pylist()]
    columns = (
        batch.column("request_hash").to_pylist(),
        from_list_array(batch.column("prompt_token_ids")),
        batch.column("max_tokens").to_pylist(),
        from_lists_array(batch.column("labels")),
        batch.column("label_texts").to_pylist(),
        batch.column("adapter").to_pylist(),
        texts.indices.to_pylist(),
    )
    for name, prompt, room, labels, label_texts, adapter, number in zip(*columns, strict=True):
        yield row_requests(name, RowRequest(prompt, room, labels, tuple(label_texts), adapter), asks[number])


def row_requests(request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
    """The engine's requests for a row, all with its adapter."""
    requests = task_type_of(ask.task).requests(request_id, asked, ask)
    return requests if asked.adapter is None else tuple(replace(one, adapter=asked.adapter) for one in requests)
