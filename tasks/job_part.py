"""What all parts of a job file have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1)]


class Part(BaseModel):
    """Unknown keys fail, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(part: BaseModel, keys: tuple[str, ...]) -> None:
    """Raises ValueError, which pydantic turns into an error of the part."""
    given = [key for key in keys if getattr(part, key) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(keys)}; {' and '.join(given) or 'none'} given")
