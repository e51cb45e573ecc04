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


def completion_logprobs(
    logprobs: Sequence[Json], tokens: TokenTexts, before: tuple[str, Sequence[Json | None] | None] = ("", None)
) -> Json:
    """Of a text's tokens, behind those of the prompt, which is `before`: its text, and its tokens where it is echoed.

    The prompt's first token follows nothing, and has no log-probability; it says what the others leave of the text.
    """
    echoed, read = before
    entries = [one for one in (*(read or ()), *logprobs) if one is not None]
    texts = [tokens.text([one["token_id"]]) for one in entries]
    scores: list[float | None] = [_finite(one["logprob"]) for one in entries]
    tops: list[dict[str, float] | None] = [_top(one, text, tokens) for one, text in zip(entries, texts, strict=True)]
    if read is not None:
        said = "".join(texts[: len(read) - 1])
        texts.insert(0, echoed.removesuffix(said) if echoed.endswith(said) else "")
        scores.insert(0, None)
        tops.insert(0, None)
    starts = [0 if read is not None else len(echoed)]
    for text in texts:
        starts.append(starts[-1] + len(text))
    return {"tokens": texts, "token_logprobs": scores, "top_logprobs": tops, "text_offset": starts[:-1]}


def _top(one: Json, text: str, tokens: TokenTexts) -> dict[str, float]:
    """The token itself is always there, as in vLLM."""
    found = {tokens.text([token]): _finite(logprob) for token, logprob in one["top"]}
    return found | {text: _finite(one["logprob"])}


def _entry(token_id: int, logprob: float, tokens: TokenTexts) -> Json:
    text = tokens.text([token_id])
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(logprob: Any) -> float:
    return max(float(logprob), _LEAST)
