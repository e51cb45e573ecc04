"""Reads a job file. Each thing that is wrong with it is said in a line: the file, the dotted key, the cure."""

import os
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from engine.errors import UserError
from tasks.job.job import DEVICE, NAME, ScoringJob
from tasks.job.job_yaml import read_yaml
from tasks.job.structured_outputs import read_schema_file

# pydantic's words are about Python.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "tuple_type": "a list",
}
_WRITTEN = {
    DEVICE: "auto, cpu, cuda or cuda:N",
    NAME: "letters of a to z, digits, dots, dashes and underscores, and begin with a letter or a digit",
}

# Of what others say, which may quote all that the user wrote.
_LONGEST_FAULT = 500


def load_job(path: str | Path, overrides: Mapping[str, object] | None = None) -> ScoringJob:
    """The job in a YAML file; `overrides` maps dotted keys to values and wins over the file.

    Raises UserError for anything that is not a job.
    """
    content = _read_yaml(Path(path))
    for key, value in (overrides or {}).items():
        override(content, key, value)
    source = content.get("source")
    if isinstance(source, dict):
        source.setdefault("folder", os.path.dirname(os.path.abspath(path)))
    read_schema_file(content, str(path))
    return parse_job(content, str(path))


def parse_job(content: Mapping[str, Any], name: str) -> ScoringJob:
    """`name` is what error lines begin with. Raises UserError with a line for each fault."""
    try:
        return ScoringJob.model_validate(content)
    except ValidationError as invalid:
        raise UserError("\n".join(f"{name}: {fault}" for fault in faults_of(invalid))) from None


def faults_of(invalid: ValueError, at: tuple[str, ...] = ()) -> list[str]:
    """A line for each fault of a job, or of the part of it that is `at` this key."""
    if not isinstance(invalid, ValidationError):
        return [f"{'.'.join(at) or 'job'}: {invalid}"]
    return [_one_line(error, (*at, *error["loc"])) for error in invalid.errors(include_url=False)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        said = str(getattr(problem, "problem", problem))
        raise UserError(f"{path}:{where} is not valid YAML: {said[:_LONGEST_FAULT]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a job; it holds no keys like name, source, prompt, task")
    return content


def override(content: dict[str, Any], dotted: str, value: object) -> None:
    """Sets a dotted key of a job; a text is what it says in YAML. Raises UserError where a key above it is a value."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = content.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {dotted}: {parent} is not a group of keys")
        content = inner
    content[last] = _value(value) if isinstance(value, str) else value


def _value(text: str) -> Any:
    """What the text says in YAML; a text that is none, such as a template, is itself."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def _one_line(error: Any, loc: tuple[Any, ...]) -> str:
    kind = error["type"]
    key = ".".join(f"{part!s:.60}" for part in loc) or "job"
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {_suggest(loc)}"
    if kind == "missing":
        return f"{key}: is required"
    if kind == "string_type":
        cure = "name one" if isinstance(error["input"], list | dict) else "put it in quotes"
        return f"{key}: must be text, not {_shown(error['input'])}; {cure}"
    if kind in _EXPECTED:
        return f"{key}: must be {_EXPECTED[kind]}, not {_shown(error['input'])}"
    if kind == "string_pattern_mismatch" and (written := _WRITTEN.get(error["ctx"]["pattern"])) is not None:
        return f"{key}: must be {written}, not {_shown(error['input'])}"
    if kind == "model_type":
        return f"{key}: must hold keys ({', '.join(_keys_at(loc))}), not {_shown(error['input'])}"
    message = " ".join(str(error["msg"])[:_LONGEST_FAULT].split()).removeprefix("Value error, ").removeprefix("Input ")
    said = kind in ("value_error", "faults") or isinstance(error["input"], dict | list | BaseModel)
    return f"{key}: {message[:1].lower()}{message[1:]}" + ("" if said else f" (got {_shown(error['input'])})")


def _shown(value: object) -> str:
    """Its beginning: a few lines of YAML may name lists of lists longer than any disk."""
    return reprlib.repr(value)[:60]


def _suggest(loc: tuple[Any, ...]) -> str:
    keys = sorted(_keys_at(loc[:-1]))
    close = get_close_matches(str(loc[-1]), keys, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(keys)}"


def _keys_at(loc: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = ScoringJob
    for part in loc:
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
