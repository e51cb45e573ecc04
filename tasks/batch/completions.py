"""`/v1/completions`."""

import json
from collections.abc import Mapping
from typing import Any

from tasks.batch.completion_outputs import outputs_of
from tasks.batch.endpoint import Answered, Asked, Endpoint, Json, RowAsk, TokenTexts, usage
from tasks.batch.parameters import (
    SAMPLING,
    TEXT_PROMPT,
    check_names,
    flag,
    given_of,
    required,
    sampling_of,
    texts_or_tokens,
    whole_number,
)
from tasks.batch.structure import STRUCTURE, structure_of
from tasks.batch.token_logprobs import completion_logprobs

_OWN = ("model", "prompt", "echo", "logprobs", *TEXT_PROMPT)
_MOST_LOGPROBS = 20


class Completions(Endpoint):
    url = "/v1/completions"
    id_prefix = "cmpl"

    def read(self, body: Json) -> Asked:
        """A row for each prompt. An echo without more tokens (`max_tokens: 0`) is scored, and nothing is generated."""
        check_names(body, {*_OWN, *SAMPLING, *STRUCTURE})
        prompts = texts_or_tokens(required(body, "prompt"), "prompt")
        logprobs = whole_number(body, "logprobs", 0, _MOST_LOGPROBS)
        sampling, echo = sampling_of(body), flag(body, "echo")
        structure = structure_of(body)
        if structure is not None:
            sampling["structured_outputs"] = structure[1]
        if logprobs is not None:
            sampling["logprobs"] = logprobs
            if echo:
                sampling["prompt_logprobs"] = logprobs
        task = {"type": "generate"}
        if echo and sampling.get("max_tokens") == 0:
            task, sampling = {"type": "perplexity"}, {"prompt_logprobs": logprobs or 0}
        own = given_of(body, TEXT_PROMPT)
        rows = tuple(RowAsk({"prompt": prompt} | own, task, sampling) for prompt in prompts)
        named = {"structure": structure[0]} if structure is not None else {}
        return Asked(rows, {"echo": prompts if echo else None, "logprobs": logprobs is not None} | named)

    def response(self, answered: Answered) -> Json:
        head = answered.head
        prompts = answered.reply["echo"] or [None] * len(answered.rows)
        choices = [
            choice
            for prompt, row in zip(prompts, answered.rows, strict=True)
            for choice in _choices(row, prompt, answered.reply["logprobs"], answered.tokens)
        ]
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [{"index": number} | choice for number, choice in enumerate(choices)],
            "usage": usage(answered.rows),
            "system_fingerprint": head.fingerprint,
        }


def _choices(row: Mapping[str, Any], prompt: str | list[int] | None, wanted: bool, tokens: TokenTexts) -> list[Json]:
    """A choice for each text that was drawn; `prompt` is None where it is not to be said again."""
    echoed = "" if prompt is None else prompt if isinstance(prompt, str) else tokens.text(prompt)
    read = json.loads(row["prompt_logprobs"] or "null") if wanted and prompt is not None else None
    scored_alone = row["finish_reason"] == "scored"
    nothing: Json = {"text": "", "logprobs": None, "finish_reason": "length"}
    outputs = [nothing] if scored_alone else outputs_of(row)
    return [
        {
            "text": f"{echoed}{output['text']}",
            "logprobs": completion_logprobs(output["logprobs"] or [], tokens, (echoed, read)) if wanted else None,
            "finish_reason": output["finish_reason"],
        }
        for output in outputs
    ]
