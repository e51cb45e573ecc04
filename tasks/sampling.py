"""A job's sampling parameters."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from engine.sampling_params import SamplingParams
from tasks.job_part import Name, Part

_ALIASES = {"max_gen_toks": "max_tokens", "max_new_tokens": "max_tokens", "until": "stop"}


def _add_aliases(schema: dict[str, Any]) -> None:
    """A deployment's parameters are held to the schema before any validator sees them."""
    properties = schema["properties"]
    for alias, name in _ALIASES.items():
        properties[alias] = {key: value for key, value in properties[name].items() if key not in ("default", "title")}
    properties["do_sample"] = {"type": "boolean"}


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
    """vLLM's field names; lm-eval's `max_gen_toks`, `max_new_tokens`, `until` and `do_sample` are taken too."""

    model_config = ConfigDict(json_schema_extra=_add_aliases)

    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: Annotated[int, AfterValidator(lambda k: max(k, 0))] = Field(default=0, ge=-1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Stops = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int = Field(default=16, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, value: Any) -> Any:
        return _resolve_aliases(dict(value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        return self

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())
