"""A job's sampling parameters."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from engine.sampling_params import SamplingParams
from tasks.job.job_part import Name, Part

_ALIASES = {"max_gen_toks": "max_tokens", "max_new_tokens": "max_tokens", "until": "stop"}


def _add_aliases(schema: dict[str, Any]) -> None:
    """A deployment's parameters are held to the schema before any validator sees them."""
    properties = schema["properties"]
    for alias, name in _ALIASES.items():
        properties[alias] = {key: value for key, value in properties[name].items() if key not in ("default", "title")}
        properties[alias]["description"] = f"The same as `{name}`."
    properties["do_sample"] = {"type": "boolean", "description": "false: `temperature` 0; true: 1, if it is not given."}


def _resolve_aliases(given: dict[str, Any]) -> dict[str, Any]:
    for alias, name in _ALIASES.items():
        if alias in given:
            if name in given:
                raise ValueError(f"{alias} and {name} say the same; give one")
            given[name] = given.pop(alias)
    if "do_sample" in given:
        if given.pop("do_sample"):
            given.setdefault("temperature", 1.0)
        else:
            given["temperature"] = 0.0
    return given


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Stops = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple, json_schema_input_type=Name | list[Name])]


class Sampling(Part):
    """How `generate` chooses tokens, in vLLM's names; lm-eval's are taken too."""

    model_config = ConfigDict(json_schema_extra=_add_aliases)

    temperature: float = Field(
        default=0.0, ge=0, le=100, allow_inf_nan=False, description="0: the likeliest token; else tokens are drawn."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw among the likeliest tokens of this much probability."
    )
    top_k: Annotated[int, AfterValidator(lambda k: max(k, 0))] = Field(
        default=0, ge=-1, description="Draw among so many tokens; 0 or -1: all."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Draws repeat with it; without it no two do.")
    stop: Stops = Field(default=(), description="A text, or a list of them, before which an answer ends.")
    stop_token_ids: tuple[int, ...] = Field(default=(), description="Tokens that end an answer.")
    ignore_eos: bool = Field(default=False, description="Write on past the model's own end.")
    max_tokens: int = Field(default=16, ge=1, description="Tokens of an answer, at most.")
    min_tokens: int = Field(default=0, ge=0, description="Tokens of an answer, at least.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Log-probabilities of each token, and of so many others at its place."
    )

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, value: Any) -> Any:
        return _resolve_aliases(dict(value)) if isinstance(value, dict) else value

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        names = ("max_tokens", *(alias for alias, name in _ALIASES.items() if name == "max_tokens"))
        most = next((given[name] for name in names if name in given), cls.model_fields["max_tokens"].default)
        least = given.get("min_tokens")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield f"min_tokens {least} is more than max_tokens {most}"

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())
