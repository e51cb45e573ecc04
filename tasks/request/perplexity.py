"""`perplexity`: how well the model foretells a row's own text, token by token."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.request import PromptLogprobs, Request, RequestOutput
from engine.sampling_params import SamplingParams
from tasks.request.ask import Ask
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType
from tasks.request.token_logprobs import prompt_logprobs_json
from tasks.source.row_error import EMPTY_PROMPT, RowError
from tasks.source.source_rows import SourceBatch


class Perplexity(TaskType):
    """All tokens of the prompt but the first, which follows nothing, as `labels=input_ids` scores in transformers."""

    name = "perplexity"
    shown = Shown("perplexity_range", ("perplexity", "value"))

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        del batch, asks
        return [
            ids if isinstance(ids, RowError) else RowRequest(ids) if len(ids) > 1 else _alone()
            for ids in reader.encoder.encode_prompts(prompts)
        ]

    def decisive(self, ask: Ask) -> object:
        """How many alternatives are stored beside each token, where any are asked for."""
        return ask.sampling.prompt_logprobs

    def asks_once(self, ask: Ask) -> bool:
        del ask
        return True

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        params = SamplingParams(prompt_logprobs=ask.sampling.prompt_logprobs)
        return (Request(request_id, asked.prompt_token_ids, params, labels=(), prompt_logprobs_from=1),)

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """`logprob` is of all tokens together, and `perplexity` the exponential of the mean token's, negated."""
        del label_texts
        (output,) = outputs
        logprobs = _read_of(output).logprobs.astype(np.float64)
        columns: dict[str, Any] = {"logprob": float(logprobs.sum()), "perplexity": math.exp(-logprobs.mean())}
        if ask.sampling.prompt_logprobs is not None:
            columns["prompt_logprobs"] = prompt_logprobs_json(output)
        return columns

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Token by token."""
        reads = [(_read_of(before), _read_of(after)) for before, after in pairs]
        differences = np.concatenate([np.abs(before.logprobs - after.logprobs) for before, after in reads])
        same = np.concatenate([before.is_greedy == after.is_greedy for before, after in reads])
        return Moved(differences.astype(np.float64), {"tokens greedy in both or in neither": float(same.mean())})


def _read_of(output: RequestOutput) -> PromptLogprobs:
    assert output.prompt_logprobs is not None, output.request_id
    return output.prompt_logprobs


def _alone() -> RowError:
    return RowError(EMPTY_PROMPT, "the prompt is one token, which follows nothing")
