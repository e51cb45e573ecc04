"""What a task type decides: how rows become requests, outputs become results, and what a person is shown of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.request import Request, RequestOutput, TokenIds
from tasks.request.ask import Ask
from tasks.request.encode import Encoder
from tasks.request.labels import LabelEncoder, LabelIds
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.prompts import PromptRenderer
from tasks.source.row_error import BAD_LABELS, RowError
from tasks.source.source_rows import SourceBatch


@dataclass(frozen=True, slots=True)
class RowReader:
    """What the rows of a type are read with. `max_tokens` are those of a prompt with its answer, at most; the context
    alone would allow `max_model_len`.
    """

    encoder: Encoder
    label_encoder: LabelEncoder
    renderer: PromptRenderer
    max_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True, eq=False)
class RowRequest:
    """What a row asks of the model. `max_tokens` are those that may be generated; `labels` are continuations to score,
    `label_texts` their names: one may be there several times, for each way to write it. `adapter` names the weights to
    run with, None the model's own alone.
    """

    prompt_token_ids: TokenIds
    max_tokens: int = 0
    labels: LabelIds = ()
    label_texts: tuple[str, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person sees of a run's results: the (name, value) rows of a statement in `sql/report`, under two heads.

    Rows that `quote` hold generated text, which may repeat a prompt: they stay in the folder and on the terminal.
    """

    statement: str
    heads: tuple[str, str]
    quote: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """How far answers of one precision are from another's: absolute differences of what is measured, and parts of the
    rows (or tokens) that stayed the same, by name.
    """

    differences: NDArray[np.float64]
    same: Mapping[str, float]
    measure: str = "log-probability difference"


class TaskType(ABC):
    """One task type. Its object is stateless; what belongs to a run comes as an argument.

    `name` is the job's `task.type`; `label_word` is what a person calls one of a request's labels,
    and `label_error` the error of a row whose labels cannot be scored. A type that `drops_labels` does without those
    that would change the prompt's tokens.
    """

    name: ClassVar[str]
    shown: ClassVar[Shown]
    label_word: ClassVar[str] = "label"
    label_error: ClassVar[str] = BAD_LABELS
    drops_labels: ClassVar[bool] = False

    @abstractmethod
    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        """A request, or an error, for each row of the batch, in which there is at least one. `asks` are all of one
        task, and may differ in their sampling.
        """

    def decisive(self, ask: Ask) -> object:
        """What decides a request's answer beside the model and what `read` gives, as JSON has it. Never changes."""
        del ask
        return None

    def is_drawn_afresh(self, ask: Ask) -> bool:
        """Whether equal rows may get different answers, so that they are never one request."""
        del ask
        return False

    def asks_once(self, ask: Ask) -> bool:
        """Whether each row is one request: with the row's prompt, its labels or none at all, and all else as any row's
        that asks the same and may generate as many tokens. Planning then needs no object for each row.
        """
        del ask
        return False

    @abstractmethod
    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        """What the engine is asked for the row, in one request or several: `asked` is what `read` gave.

        The first is the row's place in the plan, and its id `request_id`; others have ids of `nth_id`, and share that
        prompt where theirs is equal. The adapter is not theirs to set.
        """

    @abstractmethod
    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The columns of a result part that are this type's own; what it gives of the others wins over what is usual.

        `outputs` are of `requests`, in that order, and none is an error.
        """

    def ask_to_compare(self, ask: Ask) -> Ask:
        """The ask under which two precisions' answers can be compared."""
        return ask

    @abstractmethod
    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Holds outputs of the second precision to those of the first, request by request. None is an error."""


def tokens_of(outputs: Sequence[RequestOutput]) -> dict[str, int]:
    """The columns that count the prompts of a row that has several."""
    return {
        "prompt_tokens": sum(output.prompt_tokens for output in outputs),
        "cached_tokens": sum(output.num_cached_tokens for output in outputs),
    }


def nth_id(request_id: str, number: int) -> str:
    """The id of a row's request by its number, from 0: the first has the row's own."""
    return f"{request_id}.{number}" if number else request_id


def split_id(request_id: str) -> tuple[str, int]:
    """The row's request hash, and the number of the request among the row's: what `nth_id` joined."""
    request_hash, _, number = request_id.partition(".")
    return request_hash, int(number or 0)
