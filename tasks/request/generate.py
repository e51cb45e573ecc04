"""`generate`: a text that continues the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.request import Request, RequestOutput, TokenIds
from tasks.request.ask import Ask
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType
from tasks.request.token_logprobs import logprobs_json, prompt_logprobs_json
from tasks.source.row_error import CONTEXT_OVERFLOW, RowError
from tasks.source.source_rows import SourceBatch


class Generate(TaskType):
    name = "generate"
    shown = Shown("sample_texts", ("row", "text"), quote=True)

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        del batch
        encoded = reader.encoder.encode_whole(prompts)
        return [_open_ended(ids, ask.sampling.max_tokens, reader) for ids, ask in zip(encoded, asks, strict=True)]

    def decisive(self, ask: Ask) -> object:
        """The sampling parameters, and where the text reasons; `max_tokens` is each row's own."""
        reasoning = ask.task.reasoning
        found = {"reasoning": reasoning.model_dump()} if reasoning.is_known else {}
        return ask.sampling.decisive() | found

    def is_drawn_afresh(self, ask: Ask) -> bool:
        return ask.sampling.temperature > 0 and ask.sampling.seed is None

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        assert not asked.labels, request_id
        params = ask.params(asked.max_tokens)
        first = None if params.prompt_logprobs is None else 1
        return (Request(request_id, asked.prompt_token_ids, params, prompt_logprobs_from=first),)

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        del label_texts
        (output,) = outputs
        reasoning, text = split_reasoning(output.text, ask)
        return {
            "generated_text": text,
            "reasoning": reasoning,
            "token_ids": list(output.token_ids),
            "cumulative_logprob": output.cumulative_logprob,
            "logprobs": logprobs_json(output),
            "prompt_logprobs": prompt_logprobs_json(output),
        }

    def ask_to_compare(self, ask: Ask) -> Ask:
        """Greedy, whatever the row samples."""
        return replace(ask, sampling=ask.sampling.overlaid({"temperature": 0.0, "logprobs": 0}))

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


def _open_ended(whole: TokenIds | RowError, wanted: int, reader: RowReader) -> RowRequest | RowError:
    """`wanted` tokens of text, or as many as a prompt with its text may have beside it; some prompts give way."""
    if isinstance(whole, RowError):
        return whole
    prompt = reader.encoder.cut(whole, min(wanted, reader.max_tokens - 1) if reader.encoder.makes_room else 0)
    if isinstance(prompt, RowError):
        return prompt
    room = min(wanted, reader.max_tokens - len(prompt))
    if room < 1:
        return RowError(CONTEXT_OVERFLOW, f"{len(prompt)} prompt tokens leave no room in {reader.max_tokens}")
    return RowRequest(prompt, room)


def split_reasoning(text: str | None, ask: Ask) -> tuple[str | None, str | None]:
    """The reasoning in a text and the rest of it; None where there is none."""
    reasoning = ask.task.reasoning
    return reasoning.divide(text) if text is not None and reasoning.is_known else (None, text)


def _common_tokens(before: RequestOutput, after: RequestOutput) -> int:
    """How many tokens both begin with."""
    shortest = min(len(before.token_ids), len(after.token_ids))
    return next((i for i in range(shortest) if before.token_ids[i] != after.token_ids[i]), shortest)
