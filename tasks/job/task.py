"""What a job asks of each row: a task type, and the keys that belong to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from engine.pooling_params import Pooling
from tasks.job.job_part import Name, Part, exactly_one


@dataclass(frozen=True, slots=True)
class TaskKeys:
    """What a job may say beside a task's type: exactly one of `keys`, any of `options`, and `sampling` where the type
    `samples`.

    `belong` begins the line that refuses `keys` and `options` under another type.
    """

    keys: tuple[str, ...] = ()
    belong: str = ""
    options: tuple[str, ...] = ()
    samples: bool = False


TASK_KEYS = {
    "choice": TaskKeys(("labels", "labels_column"), "labels belong"),
    "embed": TaskKeys(
        belong="pooling, normalize and dimensions belong", options=("pooling", "normalize", "dimensions")
    ),
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
    """`choice` scores labels as continuations of the prompt, `loglikelihood` a given text; `generate` writes one;
    `embed` makes a vector of the prompt.
    """

    type: Literal["choice", "embed", "generate", "loglikelihood"] = Field(
        description="`choice`: which label is the likeliest continuation; `embed`: the prompt as a vector; "
        "`generate`: a text; `loglikelihood`: how likely a given text is."
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
    pooling: Pooling | None = Field(
        default=None,
        description="`embed`: the last token's hidden state (`last`, the default), the `mean` of all, or a mean "
        "`weighted` by position.",
    )
    normalize: bool | None = Field(default=None, description="`embed`: vectors of length 1, which is the default.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="`embed`: the first dimensions of a vector, so many; all where it is not said."
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
            options = [key for key in own.options if given.get(key) is not None]
            if name != chosen and (there or options) and not is_mixed:
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
        kept |= set(own.options) if own is not None else set()
        return Task.model_validate({**self.model_dump(include=kept, exclude_none=True), "type": kind, **row})

    def too_many_dimensions(self, hidden_size: int) -> str | None:
        """What is wrong with `dimensions` for a model whose hidden states have so many."""
        if self.dimensions is None or self.dimensions <= hidden_size:
            return None
        return f"dimensions: {self.dimensions} are more than the {hidden_size} of this model's hidden states"


def keys_of(task_type: object) -> TaskKeys | None:
    """The keys of a type, which may be anything; None where there is no such type."""
    return TASK_KEYS.get(task_type) if isinstance(task_type, str) else None
