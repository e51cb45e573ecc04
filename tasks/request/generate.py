"""`generate`: a text that continues the prompt."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.request import Request, RequestOutput, TokenIds
from engine.sampling_params import SamplingParams
from tasks.job.job import ScoringJob
from tasks.request.labels import LabelIds
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType
from tasks.source.row_error import CONTEXT_OVERFLOW, RowError
from tasks.source.source_rows import SourceBatch


class Generate(TaskType):
    name = "generate"
    shown = Shown("sample_texts", ("row", "text"), quote=True)

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt]
    ) -> list[RowRequest | RowError]:
        del batch
        return [_open_ended(ids, reader) for ids in reader.encoder.encode_prompts(prompts)]

    def decisive(self, job: ScoringJob) -> object:
        """The sampling parameters; `max_tokens` is each row's own."""
        return job.sampling.decisive()

    def is_drawn_afresh(self, job: ScoringJob) -> bool:
        return job.sampling.temperature > 0 and job.sampling.seed is None

    def request(self, request_id: str, prompt: TokenIds, labels: LabelIds, params: SamplingParams) -> Request:
        assert not labels, request_id
        return Request(request_id, prompt, params)

    def result(self, label_texts: Sequence[str], output: RequestOutput) -> dict[str, Any]:
        del label_texts
        return {
            "generated_text": output.text,
            "token_ids": list(output.token_ids),
            "cumulative_logprob": output.cumulative_logprob,
            "logprobs": _logprobs(output),
        }

    def params_to_compare(self, params: SamplingParams) -> SamplingParams:
        """Greedy, whatever the job samples."""
        return replace(params, temperature=0.0, logprobs=0)

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Tokens are compared up to the first that differs, and so may leave no difference to take."""
        common = [_common_tokens(*pair) for pair in pairs]
        differences = [
            abs(one.logprob - other.logprob)
            for (before, after), count in zip(pairs, common, strict=True)
            for one, other in zip((before.logprobs or ())[:count], (after.logprobs or ())[:count], strict=True)
        ]
        same_rows = float(np.mean([before.token_ids == after.token_ids for before, after in pairs]))
        same_tokens = sum(common) / sum(len(before.token_ids) for before, _ in pairs)
        same = {"rows with the same tokens": same_rows, "tokens before a difference": same_tokens}
        return Moved(np.array(differences, np.float64), same)


def _open_ended(prompt: TokenIds | RowError, reader: RowReader) -> RowRequest | RowError:
    if isinstance(prompt, RowError):
        return prompt
    room = min(reader.job.sampling.max_tokens, reader.max_tokens - len(prompt))
    if room < 1:
        return RowError(CONTEXT_OVERFLOW, f"{len(prompt)} prompt tokens leave no room in {reader.max_tokens}")
    return RowRequest(prompt, room)


def _logprobs(output: RequestOutput) -> str | None:
    if output.logprobs is None:
        return None
    tokens = [{"token_id": one.token_id, "logprob": one.logprob, "top": one.top} for one in output.logprobs]
    return json.dumps(tokens)


def _common_tokens(before: RequestOutput, after: RequestOutput) -> int:
    """How many tokens both begin with."""
    shortest = min(len(before.token_ids), len(after.token_ids))
    return next((i for i in range(shortest) if before.token_ids[i] != after.token_ids[i]), shortest)
