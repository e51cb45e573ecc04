"""`generate`: a text that continues the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np

from engine.request import Request, RequestOutput, TokenIds
from tasks.request.ask import Ask
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType, nth_id
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

    def asks_once(self, ask: Ask) -> bool:
        return ask.sampling.copies == 1

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        """One for each text that is drawn, each with draws of its own."""
        assert not asked.labels, request_id
        params = ask.params(asked.max_tokens)
        if ask.sampling.copies > 1 and params.logprobs is None:
            params = replace(params, logprobs=0)  # which says how likely the text is
        first = Request(
            request_id,
            asked.prompt_token_ids,
            params,
            prompt_logprobs_from=None if params.prompt_logprobs is None else 1,
        )
        others = (
            replace(
                first,
                request_id=nth_id(request_id, number),
                params=replace(params, seed=seed_of(params.seed, number), prompt_logprobs=None),
                prompt_logprobs_from=None,
            )
            for number in range(1, ask.sampling.copies)
        )
        return (first, *others)

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The likeliest text, the first of equals; where several were drawn, the `n` likeliest as well."""
        del label_texts
        numbers = range(len(outputs))
        ranked = sorted(numbers, key=lambda number: -(outputs[number].cumulative_logprob or 0.0))
        best = outputs[ranked[0]]
        reasoning, text = split_reasoning(best.text, ask)
        columns: dict[str, Any] = {
            "generated_text": text,
            "reasoning": reasoning,
            "token_ids": list(best.token_ids),
            "finish_reason": best.finish_reason,
            "cumulative_logprob": best.cumulative_logprob,
            "logprobs": None if ask.sampling.logprobs is None else logprobs_json(best),
            "prompt_logprobs": prompt_logprobs_json(outputs[0]),
            "min_margin": min((one.min_margin for one in outputs if one.min_margin is not None), default=None),
        }
        if ask.sampling.copies > 1:
            columns["outputs"] = [_completion(number, outputs[number], ask) for number in ranked[: ask.sampling.n]]
        return columns

    def ask_to_compare(self, ask: Ask) -> Ask:
        """One greedy text, whatever the row samples."""
        greedy = {"temperature": 0.0, "n": 1, "best_of": None, "logprobs": 0}
        return replace(ask, sampling=ask.sampling.overlaid(greedy))

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


def seed_of(seed: int | None, number: int) -> int | None:
    """The seed of a text of several by its number, from 0: the first has the row's own, as if it were alone."""
    if seed is None or number == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}.{number}".encode(), digest_size=8).digest(), "little") >> 1


def _completion(number: int, output: RequestOutput, ask: Ask) -> dict[str, Any]:
    reasoning, text = split_reasoning(output.text, ask)
    return {
        "index": number,
        "text": text,
        "reasoning": reasoning,
        "finish_reason": output.finish_reason,
        "cumulative_logprob": output.cumulative_logprob,
        "logprobs": None if ask.sampling.logprobs is None else logprobs_json(output),
    }


def split_reasoning(text: str | None, ask: Ask) -> tuple[str | None, str | None]:
    """The reasoning in a text and the rest of it; None where there is none."""
    reasoning = ask.task.reasoning
    return reasoning.divide(text) if text is not None and reasoning.is_known else (None, text)


def _common_tokens(before: RequestOutput, after: RequestOutput) -> int:
    """How many tokens both begin with."""
    shortest = min(len(before.token_ids), len(after.token_ids))
    return next((i for i in range(shortest) if before.token_ids[i] != after.token_ids[i]), shortest)
