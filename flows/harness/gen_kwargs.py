"""What a task's `generation_kwargs` say, as sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from pydantic import ValidationError

from engine.errors import UserError
from engine.sampling_params import SamplingParams
from tasks.job.job_file import faults_of
from tasks.job.sampling import Sampling

_KNOWN = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids", "ignore_eos", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids", "bad_words"),
)
# What changes nothing with these values: one text, without beams, its KV kept.
_WITHOUT_EFFECT = {"num_beams": 1, "n": 1, "num_return_sequences": 1, "use_cache": True}


@dataclass(frozen=True, slots=True)
class GenKwargs:
    """`until` are the texts before which an answer ends, the model's own end among them."""

    params: SamplingParams
    until: tuple[str, ...]


def read_gen_kwargs(given: Mapping[str, Any], max_gen_toks: int, end: str | None) -> GenKwargs:
    """`end` is the model's own end as text, if it has one. Raises UserError for what is wrong or unknown, by name."""
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), max_gen_toks))
    until = tuple(stop for stop in handle_stop_sequences(kwargs.pop("until"), end) if stop)
    asked = {"stop": until, "max_tokens": kwargs.pop("max_gen_toks")}
    drawn, temperature = kwargs.pop("do_sample"), kwargs.pop("temperature", 1.0)
    asked["temperature"] = temperature if drawn else 0.0
    for name, value in kwargs.items():
        if name in _KNOWN:
            asked[name] = value
        elif name not in _WITHOUT_EFFECT or value != _WITHOUT_EFFECT[name]:
            raise UserError(f"generation_kwargs: {name} {value!r:.60} is not taken; leave it out")
    try:
        return GenKwargs(Sampling.model_validate(asked).params(), until)
    except ValidationError as invalid:
        faults = [fault.removeprefix("sampling.") for fault in faults_of(invalid, ("sampling",))]
        raise UserError("\n".join(f"generation_kwargs: {fault}" for fault in faults)) from None
