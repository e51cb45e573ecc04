"""What a job asks of each row: a task type, and the keys that belong to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tasks.job.job_part import Name, Part, exactly_one


@dataclass(frozen=True, slots=True)
class TaskKeys:
    """What a job may say beside a task's type: exactly one of `keys`, and `sampling` where the type `samples`.

    `belong` begins the line that refuses `keys` under another type.
    """

    keys: tuple[str, ...] = ()
    belong: str = ""
    samples: bool = False


TASK_KEYS = {
    "choice": TaskKeys(("labels", "labels_column"), "labels belong"),
    "generate": TaskKeys(samples=True),
    "loglikelihood": TaskKeys(("continuation_column",), "continuation_column belongs"),
}


def _labels(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not labels:
        raise ValueError("is empty; name at least two labels")
    if len(set(labels)) != len(labels):
        raise ValueError("names a label twice")
    if any(not label.strip() for label in labels):
        raise ValueError("holds an empty label")
    return labels


class Task(Part):
    """`choice` scores labels as continuations of the prompt, `loglikelihood` a given text; `generate` writes one."""

    type: Literal["choice", "generate", "loglikelihood"] = Field(
        description="`choice`: which label is the likeliest continuation; `generate`: a text; "
        "`loglikelihood`: how likely a given text is."
    )
    labels: Annotated[tuple[str, ...] | None, AfterValidator(_labels)] = Field(
        default=None, description="`choice`: the labels of all rows, white space included."
    )
    labels_column: Name | None = Field(
        default=None, description="`choice`: a column with each row's labels, a list or its JSON."
    )
    continuation_column: Name | None = Field(
        default=None, description="`loglikelihood`: a column with the text to score behind the prompt, its context."
    )
    column: Name | None = Field(
        default=None,
        description="A column that says what each row asks: a type's name, or these keys as JSON, which win over the "
        "job's; NULL: the job's own. The job may then have keys of several types.",
    )

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        chosen, is_mixed = given.get("type"), given.get("column") is not None
        for name, own in TASK_KEYS.items() if keys_of(chosen) else ():
            there = [key for key in own.keys if given.get(key) is not None]
            if len(there) > 1 or (name == chosen and own.keys and not is_mixed):
                yield from exactly_one(given, own.keys)
            elif name != chosen and there and not is_mixed:
                yield f"{own.belong} to type: {name}"
        labels = given.get("labels")
        if chosen == "choice" and isinstance(labels, list | tuple) and len(labels) == 1:
            yield "one label is always the likeliest; score it as type: loglikelihood"

    @property
    def columns(self) -> dict[str, str]:
        """The source's columns that it names, by the job's key."""
        named = self.model_dump(include={name for name in type(self).model_fields if name.endswith("column")})
        return {f"task.{key}": column for key, column in named.items() if column is not None}

    def overlaid(self, row: Mapping[str, Any]) -> "Task":
        """The task of a row that gives these keys itself: of its type's others, those that the job has.

        Of keys that exclude each other, the row's wins. Raises ValidationError.
        """
        kind = row.get("type", self.type)
        own = keys_of(kind)
        kept = set() if own is None or any(key in row for key in own.keys) else set(own.keys)
        return Task.model_validate({**self.model_dump(include=kept, exclude_none=True), "type": kind, **row})


def keys_of(task_type: object) -> TaskKeys | None:
    """The keys of a type, which may be anything; None where there is no such type."""
    return TASK_KEYS.get(task_type) if isinstance(task_type, str) else None
