"""What task types have in common that score given texts as continuations of the prompt."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.request import LabelScore, Request, RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.labels import LabelIds, LabelledPrompt, split_context
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.task_type import RowReader, RowRequest, TaskType
from tasks.source.row_error import CONTEXT_OVERFLOW, RowError
from tasks.source.source_rows import SourceBatch


class ContinuationTask(TaskType):
    """Scores each of a row's labels behind the prompt, which is computed once for all of them."""

    @abstractmethod
    def label_texts(self, task: Task, batch: SourceBatch) -> list[tuple[str, ...] | RowError]:
        """Each row's labels."""

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        split = {row: split_context(one) for row, one in enumerate(prompts) if isinstance(one, PromptText)}
        contexts = [split[row][0] if row in split else prompt for row, prompt in enumerate(prompts)]
        texts = self.label_texts(asks[0].task, batch)
        good: dict[int, LabelledPrompt] = {}
        read: list[RowRequest | RowError | None] = []
        for row, (ids, labels) in enumerate(zip(reader.encoder.encode_prompts(contexts), texts, strict=True)):
            error = next((value for value in (ids, labels) if isinstance(value, RowError)), None)
            if error is None and row not in split:
                error = RowError(self.label_error, f"a {self.label_word} follows a text; the prompt is tokens")
            if error is None and not isinstance(ids, RowError) and not isinstance(labels, RowError):
                good[row] = LabelledPrompt(*split[row], ids, labels)
            read.append(error)
        encoded = reader.label_encoder.encode(list(good.values()))
        for (row, prompt), label_ids in zip(good.items(), encoded, strict=True):
            read[row] = self._labelled(prompt, label_ids, reader.max_tokens)
        return [request for request in read if request is not None]

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        del ask
        assert asked.labels, request_id
        return (Request(request_id, asked.prompt_token_ids, labels=asked.labels),)

    def _labelled(self, prompt: LabelledPrompt, labels: LabelIds | RowError, max_tokens: int) -> RowRequest | RowError:
        if isinstance(labels, RowError):
            return labels
        needed = len(prompt.context_ids) + max(map(len, labels)) - 1  # a label's last token is never computed
        if needed > max_tokens:
            said = f"prompt and {self.label_word} need {needed} tokens; at most {max_tokens} fit"
            return RowError(CONTEXT_OVERFLOW, said)
        return RowRequest(prompt.context_ids, 0, labels, prompt.labels)


def scores_of(output: RequestOutput) -> tuple[LabelScore, ...]:
    """The labels' scores of an output that is no error."""
    assert output.label_scores, output.request_id
    return output.label_scores


def logprobs_of(output: RequestOutput) -> NDArray[np.float64]:
    """The labels' log-likelihoods."""
    return np.array([score.logprob for score in scores_of(output)], np.float64)
