"""Log-probabilities of tokens, as the two kinds of completions write them."""

from collections.abc import Sequence
from typing import Any

from tasks.batch.endpoint import Json, TokenTexts

# Of a token whose logits are minus infinity; JSON has no such number, and vLLM writes this one.
_LEAST = -9999.0


def chat_logprobs(logprobs: Sequence[Json] | None, tokens: TokenTexts) -> Json | None:
    if logprobs is None:
        return None
    content = [
        _entry(one["token_id"], one["logprob"], tokens)
        | {"top_logprobs": [_entry(token, logprob, tokens) for token, logprob in one["top"]]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(logprobs: Sequence[Json] | None, tokens: TokenTexts, offset: int = 0) -> Json | None:
    """`offset` is where the first token begins in the text. The first of a prompt follows nothing, and has none."""
    if logprobs is None:
        return None
    texts = [tokens.text([one["token_id"]]) for one in logprobs]
    starts = [offset]
    for text in texts:
        starts.append(starts[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [None if one["logprob"] is None else _finite(one["logprob"]) for one in logprobs],
        "top_logprobs": [
            _top(one, text, tokens) if one["logprob"] is not None else None
            for one, text in zip(logprobs, texts, strict=True)
        ],
        "text_offset": starts[:-1],
    }


def _top(one: Json, text: str, tokens: TokenTexts) -> dict[str, float]:
    """The token itself is always there, as in vLLM."""
    found = {tokens.text([token]): _finite(logprob) for token, logprob in one["top"]}
    return found | {text: _finite(one["logprob"])}


def _entry(token_id: int, logprob: float, tokens: TokenTexts) -> Json:
    text = tokens.text([token_id])
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(logprob: Any) -> float:
    return max(float(logprob), _LEAST)
