"""`loglikelihood`: how likely a row's continuation is behind its context, and whether it is the greedy one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.continuations import ContinuationTask, RowLabels, logprobs_of, scores_of
from tasks.request.prompt_text import BlankPrompt, RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown
from tasks.source.cells import CellOrError, is_utf8, text_of
from tasks.source.row_error import BAD_CONTINUATION, EMPTY_PROMPT, RowError
from tasks.source.source_rows import SourceBatch


class Loglikelihood(ContinuationTask):
    """The context is the prompt, and the one label is the continuation."""

    name = "loglikelihood"
    shown = Shown("greedy_counts", ("continuation", "rows"))
    label_word = "continuation"
    label_error = BAD_CONTINUATION

    def labels(self, task: Task, batch: SourceBatch) -> list[RowLabels | RowError]:
        found = map(parse_continuation, batch.values(task.continuation_column or ""))
        return [text if isinstance(text, RowError) else RowLabels(text, text) for text in found]

    def read_prompts(
        self, reader: RowReader, prompts: Sequence[RenderedPrompt], labels: Sequence[RowLabels | RowError]
    ) -> list[RowRequest | RowError]:
        """Behind an empty context, as lm-evaluation-harness has it: one prefix token is read in its place."""
        read = super().read_prompts(reader, prompts, labels)
        return [
            self._behind_prefix(reader, prompt, own)
            if isinstance(prompt, BlankPrompt) and not isinstance(own, RowError)
            else one
            for one, prompt, own in zip(read, prompts, labels, strict=True)
        ]

    def _behind_prefix(self, reader: RowReader, prompt: BlankPrompt, labels: RowLabels) -> RowRequest | RowError:
        """A continuation that begins with the prefix token itself gives it as its context."""
        prefix = reader.encoder.prefix_token_id
        if prefix is None:
            return RowError(EMPTY_PROMPT, f"{prompt.message}, and the model has no BOS or EOS token to take its place")
        ids = reader.label_encoder.encode_alone(prompt.text + labels.texts[0])
        if len(ids) and ids[0] == prefix:
            ids = ids[1:]
        if not len(ids):
            return RowError(BAD_CONTINUATION, "the continuation has no token of its own")
        return self.labelled(reader, np.array([prefix], np.int32), labels, (ids,))

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        del ask, label_texts
        (output,) = outputs
        (score,) = scores_of(output)
        return {"logprob": score.logprob, "is_greedy": score.is_greedy, "min_margin": output.min_margin}

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
