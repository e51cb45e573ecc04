"""What an answer has to be: the job's group of keys, and what its engine is asked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from engine.errors import UserError
from engine.grammar.grammar import GrammarError, compiled
from engine.sampling_params import StructuredOutputs
from tasks.job.job_part import Name, Part, exactly_one

_WAYS = ("json", "json_object", "regex", "choice", "grammar")
_SUFFIX = ".json"


def _as_schema_text(value: object) -> object:
    """JSON text, whatever its layout was; keys keep their order, which is that of the answer's."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"is neither a JSON schema nor the path of a {_SUFFIX} file beside the job") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON schema: a schema is a mapping")
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as problem:
        raise ValueError(f"holds what JSON has no word for: {problem}") from None


SchemaText = Annotated[str, BeforeValidator(_as_schema_text, json_schema_input_type=dict[str, Any] | str)]


def _choices(choice: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if choice is None:
        return None
    if not choice:
        raise ValueError("is empty; name the texts that an answer may be")
    if len(set(choice)) != len(choice):
        raise ValueError("names a text twice")
    return choice


class StructuredOutput(Part):
    """What an answer has to be, in vLLM's names: exactly one of these. The answer ends where it is that."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True)

    json_schema: SchemaText | None = Field(
        default=None,
        alias="json",
        description="A JSON schema, which the answer validates by: a mapping, its JSON, or a `.json` file's path, "
        "from the job file's folder.",
    )
    json_object: bool = Field(default=False, description="true: any JSON object.")
    regex: Name | None = Field(default=None, description="A pattern that the whole answer matches.")
    choice: Annotated[tuple[str, ...] | None, AfterValidator(_choices)] = Field(
        default=None, description="The texts that an answer may be."
    )
    grammar: Name | None = Field(default=None, description="A context-free grammar, in Lark's or GBNF's notation.")

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        # `json_object: false` asks for nothing.
        yield from exactly_one({**given, "json_object": given.get("json_object") or None}, _WAYS)

    def asked(self) -> StructuredOutputs:
        """What the engine is asked."""
        return StructuredOutputs(self.json_schema, self.json_object, self.regex, self.choice, self.grammar)

    def fault(self) -> str | None:
        """A line about what is no grammar, behind its key; None where it is one."""
        (way,) = (key for key in _WAYS if getattr(self, "json_schema" if key == "json" else key) not in (None, False))
        try:
            compiled(self.asked())
        except GrammarError as problem:
            return f"structured_outputs.{way}: {problem}"
        return None


def read_schema_file(content: Mapping[str, Any], job_file: str) -> None:
    """Puts the schema in the place of its path, in what a job file says. Raises UserError for no such file."""
    sampling = content.get("sampling")
    structured = sampling.get("structured_outputs") if isinstance(sampling, dict) else None
    path = structured.get("json") if isinstance(structured, dict) else None
    if not isinstance(structured, dict) or not isinstance(path, str) or not path.strip().endswith(_SUFFIX):
        return
    key = f"{job_file}: sampling.structured_outputs.json"
    try:
        structured["json"] = (Path(job_file).absolute().parent / path.strip()).read_text(encoding="utf-8")
        json.loads(structured["json"])
    except OSError as problem:
        raise UserError(f"{key}: {path} cannot be read ({problem.strerror})") from None
    except ValueError as problem:
        raise UserError(f"{key}: {path} is not JSON ({problem})") from None
