"""A batch of source rows to requests: rendered, encoded, checked against the context, named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.request import TokenIds
from tasks.request.encode import Encoder
from tasks.request.labels import LabelEncoder, LabelIds, LabelledPrompt, parse_labels, split_context
from tasks.request.prompts import PromptRenderer, RenderedPrompt
from tasks.request.request_hash import RequestHasher
from tasks.source.row_error import CONTEXT_OVERFLOW, UNKNOWN_TOKEN, RowError
from tasks.source.source_rows import SourceBatch
from tasks.storage.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, eq=False)
class NewRequest:
    """A row's request. `labels` are empty for `generate`; `max_tokens` is what the context leaves of the job's."""

    request_hash: str
    prompt_token_ids: TokenIds
    max_tokens: int
    labels: LabelIds = ()
    label_texts: tuple[str, ...] = ()


class RequestBuilder:
    """Rows that cannot be scored come out as their error. `columns` are the prompt's, of `find_columns`."""

    def __init__(self, run: Run, columns: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> None:
        self._job = run.job
        self._max_tokens = run.max_tokens
        self._vocab_size = run.shape.vocab_size
        self._renderer = PromptRenderer(run.job.prompt, columns, tokenizer)
        self._encoder = Encoder(tokenizer, run.max_tokens, add_special_tokens=not run.job.prompt.uses_chat)
        self._label_encoder = LabelEncoder(self._encoder)
        self._hasher = RequestHasher(run)

    def build(self, batch: SourceBatch, custom_ids: Sequence[str]) -> list[NewRequest | RowError]:
        prompts = self._renderer.render(batch)
        if self._job.task.type == "generate":
            built = self._generate(prompts, custom_ids)
        else:
            built = self._choice(prompts, self._label_texts(batch), custom_ids)
        return built if self._encoder.largest_id < self._vocab_size else [self._if_known(one) for one in built]

    def _if_known(self, built: NewRequest | RowError) -> NewRequest | RowError:
        if isinstance(built, RowError):
            return built
        if all((ids < self._vocab_size).all() for ids in (built.prompt_token_ids, *built.labels)):
            return built
        return RowError(UNKNOWN_TOKEN, "the prompt or a label holds a special token that the model has no embedding of")

    def _generate(self, prompts: Sequence[RenderedPrompt], custom_ids: Sequence[str]) -> list[NewRequest | RowError]:
        encoded = self._encoder.encode_prompts(prompts)
        return [
            ids if isinstance(ids, RowError) else self._open_ended(ids, custom_id)
            for ids, custom_id in zip(encoded, custom_ids, strict=True)
        ]

    def _open_ended(self, prompt: TokenIds, custom_id: str) -> NewRequest | RowError:
        room = min(self._job.sampling.max_tokens, self._max_tokens - len(prompt))
        if room < 1:
            return RowError(CONTEXT_OVERFLOW, f"{len(prompt)} prompt tokens leave no room in {self._max_tokens}")
        return NewRequest(self._hasher(prompt, room, custom_id, (), ()), prompt, room)

    def _label_texts(self, batch: SourceBatch) -> list[tuple[str, ...] | RowError]:
        if self._job.task.labels_column is None:
            return [self._job.task.labels or ()] * batch.num_rows
        return [parse_labels(value) for value in batch.values(self._job.task.labels_column)]

    def _choice(
        self,
        prompts: Sequence[RenderedPrompt],
        texts: Sequence[tuple[str, ...] | RowError],
        custom_ids: Sequence[str],
    ) -> list[NewRequest | RowError]:
        split = [("", "") if isinstance(prompt, RowError) else split_context(prompt) for prompt in prompts]
        contexts = [prompt if isinstance(prompt, RowError) else split[i][0] for i, prompt in enumerate(prompts)]
        encoded = self._encoder.encode_prompts(contexts)
        good: dict[int, LabelledPrompt] = {}
        built: list[NewRequest | RowError | None] = []
        for row, (ids, labels) in enumerate(zip(encoded, texts, strict=True)):
            error = next((value for value in (ids, labels) if isinstance(value, RowError)), None)
            if not isinstance(ids, RowError) and not isinstance(labels, RowError):
                good[row] = LabelledPrompt(*split[row], ids, labels)
            built.append(error)
        for row, label_ids in zip(good, self._label_encoder.encode(list(good.values())), strict=True):
            built[row] = self._labelled(good[row], label_ids, custom_ids[row])
        return [request for request in built if request is not None]

    def _labelled(self, prompt: LabelledPrompt, labels: LabelIds | RowError, custom_id: str) -> NewRequest | RowError:
        if isinstance(labels, RowError):
            return labels
        needed = len(prompt.context_ids) + max(map(len, labels)) - 1  # a label's last token is never computed
        if needed > self._max_tokens:
            return RowError(CONTEXT_OVERFLOW, f"prompt and label need {needed} tokens; at most {self._max_tokens} fit")
        name = self._hasher(prompt.context_ids, 0, custom_id, labels, prompt.labels)
        return NewRequest(name, prompt.context_ids, 0, labels, prompt.labels)
