"""A job's sampling parameters."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from engine.grammar.grammar import GRAMMAR_VERSION
from engine.sampling_params import SamplingParams
from tasks.job.job_part import Name, Part
from tasks.job.structured_outputs import StructuredOutput

# Keys that requests were named without once, and what they had then: a request that has it still is named so. They are
# no defaults, so that a default may change and its requests get other names.
_UNNAMED: dict[str, object] = {
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "allowed_token_ids": None,
    "bad_words": [],
    "include_stop_str_in_output": False,
    "prompt_logprobs": None,
    "n": 1,
    "best_of": None,
}
# As many as vLLM allows (VLLM_MAX_N_SEQUENCES).
_MOST_COPIES = 16_384
_ALIASES = {"max_gen_toks": "max_tokens", "max_new_tokens": "max_tokens", "until": "stop"}


def _add_aliases(schema: dict[str, Any]) -> None:
    """A deployment's parameters are held to the schema before any validator sees them."""
    properties = schema["properties"]
    for alias, name in _ALIASES.items():
        properties[alias] = {key: value for key, value in properties[name].items() if key not in ("default", "title")}
        properties[alias]["description"] = f"The same as `{name}`."
    properties["do_sample"] = {"type": "boolean", "description": "false: `temperature` 0; true: 1, if it is not given."}


def _resolve_aliases(given: dict[str, Any], temperature: float = 0.0) -> dict[str, Any]:
    """The same in vLLM's names. `do_sample` draws at `temperature`, or at 1 where that is 0.

    Raises ValueError where two names of one parameter are given.
    """
    for alias, name in _ALIASES.items():
        if alias in given:
            if name in given:
                raise ValueError(f"{alias} and {name} say the same; give one")
            given[name] = given.pop(alias)
    if "do_sample" in given:
        if not isinstance(given["do_sample"], bool):
            raise ValueError(f"do_sample must be true or false, not {given['do_sample']!r:.60}")
        if given.pop("do_sample"):
            given.setdefault("temperature", temperature or 1.0)
        else:
            given["temperature"] = 0.0
    return given


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _is_zero(number: object) -> bool:
    """Whether a value that nobody has looked at stands for 0."""
    try:
        return float(number) == 0  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _copy_faults(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with how many texts are asked for."""
    n, best_of = given.get("n", 1), given.get("best_of")
    if isinstance(best_of, int) and isinstance(n, int) and best_of < n:
        yield f"best_of {best_of} is less than n {n}"
    # A row may give the temperature that the job does not.
    is_greedy = _is_zero(given.get("temperature", 0.0)) and given.get("column") is None
    copies = next((name for name in ("n", "best_of") if isinstance(given.get(name), int) and given[name] > 1), None)
    if is_greedy and copies is not None:
        yield f"{copies} {given[copies]} asks for copies of one greedy text; give a temperature, or leave it out"


Stops = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple, json_schema_input_type=Name | list[Name])]


def _not_empty(tokens: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if tokens == ():
        raise ValueError("is empty; name a token, or leave it out")
    return tokens


class Sampling(Part):
    """How `generate` chooses tokens, in vLLM's names; lm-eval's are taken too."""

    model_config = ConfigDict(json_schema_extra=_add_aliases)

    temperature: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="0: the likeliest token; else tokens are drawn."
    )
    n: int = Field(
        default=1,
        ge=1,
        le=_MOST_COPIES,
        description="Answers to each prompt, drawn apart; the prompt is computed once.",
    )
    best_of: Annotated[int, Field(ge=1, le=_MOST_COPIES)] | None = Field(
        default=None, description="Draw so many answers, and keep the `n` likeliest of them; `n` where it is not said."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw among the likeliest tokens of this much probability."
    )
    top_k: Annotated[int, AfterValidator(lambda k: max(k, 0))] = Field(
        default=0, ge=-1, description="Draw among so many tokens; 0 or -1: all."
    )
    seed: Annotated[int | None, AfterValidator(lambda seed: None if seed == -1 else seed)] = Field(
        default=None, ge=-1, lt=2**63, description="Draws repeat with it; without it, or with -1, no two do."
    )
    stop: Stops = Field(default=(), description="A text, or a list of them, before which an answer ends.")
    stop_token_ids: tuple[int, ...] = Field(default=(), description="Tokens that end an answer.")
    ignore_eos: bool = Field(default=False, description="Write on past the model's own end.")
    max_tokens: int = Field(default=16, ge=1, description="Tokens of an answer, at most.")
    min_tokens: int = Field(default=0, ge=0, description="Tokens of an answer, at least.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Log-probabilities of each token, and of so many others at its place."
    )
    prompt_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="The same of each token of the prompt; `perplexity` takes it too."
    )

    min_p: float = Field(default=0.0, ge=0, le=1, description="Draw among tokens of this share of the likeliest's.")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Taken from the logits of tokens that the answer has already."
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Taken for each time that the answer has the token already."
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Divides the logits of tokens that prompt or answer have; 1: none.",
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = Field(
        default={}, description="Added to the logits of tokens: `{42: -100}`."
    )
    allowed_token_ids: Annotated[tuple[int, ...] | None, AfterValidator(_not_empty)] = Field(
        default=None, description="The only tokens that an answer may have."
    )
    bad_words: Stops = Field(default=(), description="A text, or a list of them, that no answer may hold.")
    include_stop_str_in_output: bool = Field(default=False, description="Keep the text of `stop` that ended an answer.")
    structured_outputs: StructuredOutput | None = None
    column: Name | None = Field(
        default=None,
        description="A column of JSON with these keys, which win over the job's in their row; NULL: the job's own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, value: Any) -> Any:
        return _resolve_aliases(dict(value)) if isinstance(value, dict) else value

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        with suppress(ValueError):
            given = _resolve_aliases(dict(given))
        most, least = given.get("max_tokens", cls.model_fields["max_tokens"].default), given.get("min_tokens")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield f"min_tokens {least} is more than max_tokens {most}"
        if given.get("structured_outputs") is not None and given.get("stop"):
            yield "stop would cut what structured_outputs asks for short of its end; leave it out"
        yield from _copy_faults(given)

    def overlaid(self, row: Mapping[str, Any]) -> "Sampling":
        """The sampling of a row that gives these keys itself. Raises ValidationError, ValueError of two aliases."""
        own = _resolve_aliases(dict(row), self.temperature)
        return Sampling.model_validate(self.model_dump(exclude_defaults=True, exclude={"column"}) | own)

    def unknown_token(self, vocab_size: int) -> str | None:
        """A line about a token that a model of `vocab_size` does not have, behind its key; None where it has all."""
        for key, token in self._token_ids:
            if not 0 <= token < vocab_size:
                return f"{key}: {token} is no token of this model (0 to {vocab_size - 1})"
        return None

    def bad_grammar(self) -> str | None:
        """A line about what an answer cannot be asked to be, behind its key; None where it can."""
        return None if self.structured_outputs is None else self.structured_outputs.fault()

    @property
    def _token_ids(self) -> Iterator[tuple[str, int]]:
        """The tokens that it names, each behind its key."""
        yield from (("stop_token_ids", token) for token in self.stop_token_ids)
        yield from (("allowed_token_ids", token) for token in self.allowed_token_ids or ())
        yield from (("logit_bias", token) for token in self.logit_bias)

    def decisive(self) -> dict[str, Any]:
        """What decides an answer, besides its length, as JSON has it; a default counts as its value."""
        given = self.model_dump(mode="json", exclude={"max_tokens", "column", "structured_outputs"})
        if self.structured_outputs is not None:
            given["structured_outputs"] = self.structured_outputs.model_dump(mode="json", exclude_defaults=True)
            given["grammar"] = GRAMMAR_VERSION
        return {name: value for name, value in given.items() if name not in _UNNAMED or value != _UNNAMED[name]}

    @property
    def copies(self) -> int:
        """How many texts are drawn for a prompt."""
        return self.n if self.best_of is None else self.best_of

    def params(self) -> SamplingParams:
        """The engine's parameters of one text."""
        given = self.model_dump(exclude={"column", "n", "best_of", "structured_outputs"})
        given["logit_bias"] = tuple(self.logit_bias.items())
        structured = None if self.structured_outputs is None else self.structured_outputs.asked()
        return SamplingParams(**given, structured_outputs=structured)
