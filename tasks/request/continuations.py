"""What task types have in common that score given texts as continuations of the prompt."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.request import LabelScore, Request, RequestOutput, TokenIds
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.labels import LabelIds, LabelledPrompt, split_context
from tasks.request.prompt_text import PromptText, RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, TaskType
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch


@dataclass(frozen=True, slots=True)
class RowLabels:
    """The `texts` that are scored for a row, each a way to write the label of its name."""

    texts: tuple[str, ...]
    names: tuple[str, ...]


class ContinuationTask(TaskType):
    """Scores each of a row's labels behind the prompt, which is computed once for all of them."""

    @abstractmethod
    def labels(self, task: Task, batch: SourceBatch) -> list[RowLabels | RowError]:
        """Each row's."""

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        return self.read_prompts(reader, prompts, self.labels(asks[0].task, batch))

    def read_prompts(
        self, reader: RowReader, prompts: Sequence[RenderedPrompt], labels: Sequence[RowLabels | RowError]
    ) -> list[RowRequest | RowError]:
        """A request, or an error, for each prompt with its labels."""
        split = {row: split_context(one) for row, one in enumerate(prompts) if isinstance(one, PromptText)}
        contexts = [split[row][0] if row in split else prompt for row, prompt in enumerate(prompts)]
        good: dict[int, tuple[LabelledPrompt, RowLabels]] = {}
        read: list[RowRequest | RowError | None] = []
        for row, (ids, own) in enumerate(zip(reader.encoder.encode_whole(contexts), labels, strict=True)):
            error = next((value for value in (ids, own) if isinstance(value, RowError)), None)
            if error is None and row not in split:
                error = RowError(self.label_error, f"a {self.label_word} follows a text; the prompt is tokens")
            if error is None and not isinstance(ids, RowError) and not isinstance(own, RowError):
                good[row] = LabelledPrompt(*split[row], ids, own.texts), own
            read.append(error)
        encoded = reader.label_encoder.encode([prompt for prompt, _ in good.values()])
        for (row, (prompt, own)), label_ids in zip(good.items(), encoded, strict=True):
            read[row] = self.labelled(reader, prompt.context_ids, own, label_ids)
        return [request for request in read if request is not None]

    def labelled(
        self, reader: RowReader, context: TokenIds, labels: RowLabels, ids: LabelIds | RowError
    ) -> RowRequest | RowError:
        """The request for labels that are `ids` behind the context, which is cut or refused where it is too long."""
        kept = ids if isinstance(ids, RowError) else self.settle(labels, ids)
        if isinstance(kept, RowError):
            return kept
        label_ids, names = kept
        needed = max(map(len, label_ids)) - 1  # a label's last token is never computed
        prompt = reader.encoder.cut(context, needed, f"prompt and {self.label_word} need")
        return prompt if isinstance(prompt, RowError) else RowRequest(prompt, 0, label_ids, names)

    def settle(self, labels: RowLabels, ids: LabelIds) -> tuple[LabelIds, tuple[str, ...]] | RowError:
        """What is scored, and the name of each."""
        return ids, labels.names

    def asks_once(self, ask: Ask) -> bool:
        del ask
        return True

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        del ask
        assert asked.labels, request_id
        return (Request(request_id, asked.prompt_token_ids, labels=asked.labels),)


def scores_of(output: RequestOutput) -> tuple[LabelScore, ...]:
    """The labels' scores of an output that is no error."""
    assert output.label_scores, output.request_id
    return output.label_scores


def logprobs_of(output: RequestOutput) -> NDArray[np.float64]:
    """The labels' log-likelihoods."""
    return np.array([score.logprob for score in scores_of(output)], np.float64)


def compare_scores(pairs: Sequence[tuple[RequestOutput, RequestOutput]], same: str) -> Moved:
    """Label by label; `same` is what it is called that the likeliest stays."""
    scores = [(logprobs_of(before), logprobs_of(after)) for before, after in pairs]
    differences = np.concatenate([np.abs(before - after) for before, after in scores])
    agreed = [int(np.argmax(before)) == int(np.argmax(after)) for before, after in scores]
    return Moved(differences, {same: float(np.mean(agreed))})
