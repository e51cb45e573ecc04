"""What all parts of a job file have in common."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Name = Annotated[str, StringConstraints(min_length=1)]

# What Linux allows, in bytes: a path, and a name in it.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def _usable_path(path: str) -> str:
    """What the system can look for; whether it is there is asked later."""
    if "\0" in path:
        raise ValueError("holds a NUL character, which no path may")
    try:
        size = len(os.fsencode(Path(path).expanduser()))
    except RuntimeError:
        raise ValueError(f"{path:.60} names a user whom this machine does not know") from None
    if size > _LONGEST_PATH:
        raise ValueError(f"is {size:,} bytes long; a path may have {_LONGEST_PATH:,}")
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.split("/")):
        raise ValueError(f"holds a name of more than {_LONGEST_NAME} bytes, the most that a file may have")
    return path


FilePath = Annotated[Name, AfterValidator(_usable_path)]


class Part(BaseModel):
    """Unknown keys fail, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG003
        """What is wrong between keys. `given` is not validated: its values may be anything."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """What is wrong between keys is said beside what is wrong within them, so that one look mends a file."""
        own = list(cls.faults(value)) if isinstance(value, Mapping) else []
        try:
            part = handler(value)
        except ValidationError as invalid:
            within = [_again(error) for error in invalid.errors(include_url=False)]
        else:
            if not own:
                return part
            within = []
        between = [
            InitErrorDetails(type=PydanticCustomError("faults", "{said}", {"said": one}), input=value) for one in own
        ]
        raise ValidationError.from_exception_data(cls.__name__, [*within, *between])


def _again(error: Any) -> InitErrorDetails:
    kind = error["type"]
    if kind == "faults":
        kind = PydanticCustomError("faults", "{said}", error["ctx"])
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


def at_most_one(given: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    """A fault where more than one of the keys has a value."""
    if sum(given.get(key) is not None for key in keys) > 1:
        yield from exactly_one(given, keys)


def exactly_one(given: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    """A fault where not one of the keys has a value."""
    there = [key for key in keys if given.get(key) is not None]
    if len(there) != 1:
        if len(keys) == 1:
            yield f"give {keys[0]}; none given"
            return
        yield f"give exactly one of {', '.join(keys)}; {' and '.join(there) or 'none'} given"
