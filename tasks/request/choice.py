"""`choice`: which of a row's labels is the likeliest continuation of the prompt."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.continuations import ContinuationTask, logprobs_of, scores_of
from tasks.request.labels import parse_labels
from tasks.request.task_type import Moved, Shown
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch


class Choice(ContinuationTask):
    name = "choice"
    shown = Shown("label_counts", ("label", "rows"))

    def label_texts(self, task: Task, batch: SourceBatch) -> list[tuple[str, ...] | RowError]:
        if task.labels_column is None:
            return [task.labels or ()] * batch.num_rows
        return [parse_labels(value) for value in batch.values(task.labels_column)]

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The likeliest label, the first of equals; probabilities are normalised over the labels."""
        del ask
        (output,) = outputs
        logprobs = [score.logprob for score in scores_of(output)]
        best = max(range(len(logprobs)), key=logprobs.__getitem__)
        weights = [math.exp(logprob - logprobs[best]) for logprob in logprobs]
        return {
            "label": label_texts[best],
            "cumulative_logprob": logprobs[best],
            "label_probs": [(text, weight / sum(weights)) for text, weight in zip(label_texts, weights, strict=True)],
            "label_logprobs": list(zip(label_texts, logprobs, strict=True)),
        }

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        scores = [(logprobs_of(before), logprobs_of(after)) for before, after in pairs]
        differences = np.concatenate([np.abs(before - after) for before, after in scores])
        agreed = [int(np.argmax(before)) == int(np.argmax(after)) for before, after in scores]
        return Moved(differences, {"label agreement": float(np.mean(agreed))})
