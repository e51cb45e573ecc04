"""`loglikelihood`: how likely a row's continuation is behind its context, and whether it is the greedy one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.continuations import ContinuationTask, logprobs_of, scores_of
from tasks.request.task_type import Moved, Shown
from tasks.source.cells import CellOrError, is_utf8, text_of
from tasks.source.row_error import BAD_CONTINUATION, RowError
from tasks.source.source_rows import SourceBatch


class Loglikelihood(ContinuationTask):
    """The context is the prompt, and the one label is the continuation."""

    name = "loglikelihood"
    shown = Shown("greedy_counts", ("continuation", "rows"))
    label_word = "continuation"
    label_error = BAD_CONTINUATION

    def label_texts(self, task: Task, batch: SourceBatch) -> list[tuple[str, ...] | RowError]:
        return [parse_continuation(value) for value in batch.values(task.continuation_column or "")]

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        del ask, label_texts
        (output,) = outputs
        (score,) = scores_of(output)
        return {"logprob": score.logprob, "is_greedy": score.is_greedy}

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        differences = np.concatenate([np.abs(logprobs_of(before) - logprobs_of(after)) for before, after in pairs])
        same = [scores_of(before)[0].is_greedy == scores_of(after)[0].is_greedy for before, after in pairs]
        return Moved(differences, {"greedy in both or in neither": float(np.mean(same))})


def parse_continuation(value: CellOrError) -> tuple[str] | RowError:
    """A column's value as the one text to score; white space is a text."""
    if isinstance(value, RowError):
        return value
    text = "" if value is None else text_of(value)
    if not text:
        return RowError(BAD_CONTINUATION, f"the continuation is {'NULL' if value is None else 'empty'}")
    if "\x00" in text or not is_utf8(text):
        return RowError(BAD_CONTINUATION, "the continuation is not valid UTF-8")
    return (text,)
