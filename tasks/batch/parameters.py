"""A body's parameters: those of sampling by vLLM's names, those without effect here, and the others refused by name."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

from tasks.batch.endpoint import BadRequestError, Json

# Checked where a row's sampling is, `tasks/job/sampling.py`.
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens"),
    *("min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids"),
    *("bad_words", "include_stop_str_in_output", "n", "best_of", "prompt_logprobs"),
)
# What the prompt is made of, `tasks/request/body.py`.
PROMPT = (
    *("messages", "tools", "chat_template_kwargs", "documents", "reasoning_effort", "add_generation_prompt"),
    *("continue_final_message", "add_special_tokens"),
)
# What of that belongs to a prompt that is a text.
TEXT_PROMPT = ("add_special_tokens",)
# They say who asks, or when and where a service answers.
_WITHOUT_EFFECT = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("request_id", "priority"),
}
# The one value that each may have.
_ONLY = {
    "stream": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "use_beam_search": False,
    "return_tokens_as_token_ids": False,
    "return_token_ids": False,
    "suffix": "",
}


def check_names(body: Json, known: Collection[str]) -> None:
    """Raises BadRequestError for a parameter that is not `known`, or that has another value than is served."""
    for name, value in body.items():
        if name in _ONLY and name not in known:
            if value != _ONLY[name]:
                raise BadRequestError("unsupported_value", f"{name} {value!r:.60} is not served in a batch", name)
        elif name not in known and name not in _WITHOUT_EFFECT:
            near = get_close_matches(name[:60], known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadRequestError("unknown_parameter", f"unknown parameter {name!r:.60}{hint}", name)


def sampling_of(body: Json) -> Json:
    """As the API draws where nothing is said: at temperature 1."""
    return {"temperature": 1.0} | given_of(body, SAMPLING)


def given_of(body: Json, names: Iterable[str]) -> Json:
    """Those of the parameters that the body has."""
    return {name: body[name] for name in names if name in body}


def flag(body: Json, name: str, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError("invalid_type", f"{name} is true or false, not {value!r:.60}", name)
    return value


def whole_number(body: Json, name: str, least: int, most: int | None = None) -> int | None:
    """None where it is not given."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise BadRequestError("invalid_value", f"{name} is a whole number {limits}, not {value!r:.60}", name)
    return value


def required(body: Json, name: str) -> object:
    if name not in body:
        raise BadRequestError("missing_required_parameter", f"{name} is required", name)
    return body[name]


def texts_or_tokens(value: object, name: str) -> list[str | list[int]]:
    """One text, a list of texts, one list of tokens or a list of such, as a list of its members."""
    if isinstance(value, str) or _is_tokens(value):
        return [value]  # type: ignore[list-item]
    if isinstance(value, list) and value and all(isinstance(one, str) or _is_tokens(one) for one in value):
        return value
    raise BadRequestError("invalid_type", f"{name} is a text, a list of texts, or token ids", name)


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
