"""`choice`: which of a row's labels is the likeliest continuation of the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.continuations import ContinuationTask, RowLabels, compare_scores, logprobs_of
from tasks.request.label_masses import LabelMasses
from tasks.request.labels import parse_labels
from tasks.request.task_type import Moved, Shown
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch


class Choice(ContinuationTask):
    name = "choice"
    shown = Shown("label_counts", ("label", "rows"))

    def labels(self, task: Task, batch: SourceBatch) -> list[RowLabels | RowError]:
        if task.labels_column is None:
            return [RowLabels(task.labels or (), task.labels or ())] * batch.num_rows
        found = (parse_labels(value, task) for value in batch.values(task.labels_column))
        return [labels if isinstance(labels, RowError) else RowLabels(labels, labels) for labels in found]

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The likeliest label, the first of equals; probabilities are normalised over the labels.

        `label_norm` is the likeliest by log-likelihood a byte: lm-evaluation-harness has it for `acc_bytes`, and for
        `acc_norm` where bytes are characters. White space before a label is no part of a choice there.
        """
        del ask
        (output,) = outputs
        labels = LabelMasses.of(label_texts, logprobs_of(output))
        sizes = [len(text.lstrip().encode()) for text in labels.names]
        return {
            "label": labels.names[labels.best],
            "label_norm": labels.names[int(np.argmax(labels.logprobs / sizes))],
            "cumulative_logprob": float(labels.logprobs[labels.best]),
            "label_probs": labels.by_name(labels.shares),
            "label_logprobs": labels.by_name(labels.logprobs),
            "min_margin": labels.margin,
        }

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        return compare_scores(pairs, "label agreement")
