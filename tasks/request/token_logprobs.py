"""Log-probabilities of tokens as result columns have them: JSON, a token a place, each with its best alternatives."""

import json
from typing import Any

from engine.request import RequestOutput


def logprobs_json(output: RequestOutput) -> str | None:
    """Of the generated tokens; None where nobody asked."""
    if output.logprobs is None:
        return None
    return json.dumps([_token(one.token_id, one.logprob, one.top) for one in output.logprobs])


def prompt_logprobs_json(output: RequestOutput) -> str | None:
    """Of the prompt's tokens, null for the first, which follows nothing (as vLLM has it); None where nobody asked."""
    read = output.prompt_logprobs
    if read is None:
        return None
    columns = (part.tolist() for part in (read.token_ids, read.logprobs, read.top_tokens, read.top_logprobs))
    tokens = [
        _token(token, logprob, tuple(zip(best, best_logprobs, strict=True)))
        for token, logprob, best, best_logprobs in zip(*columns, strict=True)
    ]
    return json.dumps([None] * read.first + tokens)


def _token(token_id: int, logprob: float, top: tuple[tuple[int, float], ...]) -> dict[str, Any]:
    return {"token_id": token_id, "logprob": logprob, "top": top}
