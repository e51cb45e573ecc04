"""`score`: the probability that a model says yes, of a prompt or of each of a row's items, as rerankers use it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import Request, RequestOutput
from tasks.job.task import YES_NO, Task
from tasks.request.ask import Ask
from tasks.request.classify import Classify
from tasks.request.continuations import RowLabels, logprobs_of
from tasks.request.items import join_items, parse_items, split_items, split_names
from tasks.request.label_masses import LabelMasses
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import RowReader, RowRequest, Shown, nth_id, tokens_of
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch


class Score(Classify):
    """The score is the first label's probability: of all labels' with `apply_softmax`, else of all that could follow.

    Without items the prompt is scored as it is. With items a row has a prompt for each: the query with the item behind
    it, or before it. (vLLM's generative scoring has these words.)
    """

    name = "score"
    shown = Shown("score_range", ("score", "value"))

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        task = asks[0].task
        labels = self.labels(task, batch)
        if not task.has_items:
            return self._read(reader, prompts, labels, task)
        items = [
            prompt if isinstance(prompt, RowError) else one
            for prompt, one in zip(prompts, _items(task, batch), strict=True)
        ]
        rendered = reader.renderer.render_items(batch, items, item_first=task.item_first)
        good = [(row, prompt) for row, one in enumerate(rendered) if not isinstance(one, RowError) for prompt in one]
        flat = iter(self._read(reader, [prompt for _, prompt in good], [labels[row] for row, _ in good], task))
        return [one if isinstance(one, RowError) else join_items([next(flat) for _ in one]) for one in rendered]

    def _read(
        self, reader: RowReader, prompts: Sequence[RenderedPrompt], labels: Sequence[RowLabels | RowError], task: Task
    ) -> list[RowRequest | RowError]:
        if task.label_token_ids is None:
            return self.read_prompts(reader, prompts, labels)
        names = tuple(map(str, task.label_token_ids))
        ids = tuple(np.array([token], np.int32) for token in task.label_token_ids)
        return [
            prompt if isinstance(prompt, RowError) else RowRequest(prompt, 0, ids, names)
            for prompt in reader.encoder.encode_prompts(prompts)
        ]

    def labels(self, task: Task, batch: SourceBatch) -> list[RowLabels | RowError]:
        if task.labels is None and task.labels_column is None:
            task = task.model_copy(update={"labels": YES_NO})
        return super().labels(task, batch)

    def decisive(self, ask: Ask) -> object:
        return {"apply_softmax": ask.task.apply_softmax, "items": ask.task.has_items}

    def asks_once(self, ask: Ask) -> bool:
        return not ask.task.has_items

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        """One for each item."""
        del ask
        return tuple(
            Request(nth_id(request_id, place), item.prompt_token_ids, labels=item.labels)
            for place, item in enumerate(split_items(asked))
        )

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """`scores` of a row's items, in their order; without items `score`, and what `classify` gives."""
        found = [
            LabelMasses.of(names, logprobs_of(output))
            for names, output in zip(split_names(label_texts), outputs, strict=True)
        ]
        probs = [one.shares if ask.task.apply_softmax else one.probs for one in found]
        scores = [float(one[0]) for one in probs]
        if ask.task.has_items:
            margins = [one.margin for one in found if one.margin is not None]
            return {"scores": scores, "min_margin": min(margins, default=None)} | tokens_of(outputs)
        (labels,), (own,) = found, probs
        return super().result(ask, label_texts, outputs) | {"score": scores[0], "label_probs": labels.by_name(own)}


def _items(task: Task, batch: SourceBatch) -> list[tuple[str, ...] | RowError]:
    if task.items_column is None:
        return [task.items or ()] * batch.num_rows
    return [parse_items(value) for value in batch.values(task.items_column)]
