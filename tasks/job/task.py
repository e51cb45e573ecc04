"""What a job asks of each row: a task type, and the keys that belong to it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from engine.pooling_params import Pooling, PoolingParams
from tasks.job.job_part import Name, Part
from tasks.job.reasoning import Reasoning
from tasks.job.task_keys import key_faults, keys_of
from tasks.job.variants import RULES, VariantRule, Variants, all_variants, parse_variants

TaskName = Literal[
    "choice", "classify", "embed", "generate", "loglikelihood", "loglikelihood_rolling", "perplexity", "score"
]
# The labels of `score` where nothing else is said.
YES_NO = ("yes", "no")


def _labels(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not labels:
        raise ValueError("is empty; name at least two labels")
    twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if twice is not None:
        raise ValueError(f"names {twice!r:.60} twice; name each label once")
    if any(not label.strip() for label in labels):
        raise ValueError("holds an empty label, or white space alone; a label is a text that the model can write")
    return labels


def _token_ids(tokens: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if tokens is not None and (not tokens or len(set(tokens)) != len(tokens)):
        raise ValueError("names no token, or one twice; name each once")
    return tokens


def _items(items: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if items is not None and (not items or not all(item.strip() for item in items)):
        raise ValueError("is empty, or holds an empty item; an item is a text, to be scored with the prompt")
    return items


def lone_label_fault(task_type: object, apply_softmax: object) -> str | None:
    """What is wrong with one label alone: a type that compares labels needs two. None where nothing is."""
    if task_type == "choice":
        return "one label is always the likeliest; score it as type: loglikelihood"
    if task_type == "classify":
        return "one label is always the likeliest; its probability is type: score with apply_softmax: false"
    if task_type == "score" and apply_softmax is not False:
        return "one label has all of a softmax; take apply_softmax: false, or name another label"
    return None


def _lone_label(given: Mapping[str, Any]) -> Iterator[str]:
    named = given.get("labels") or given.get("label_token_ids")
    if isinstance(named, list | tuple) and len(named) == 1:
        fault = lone_label_fault(given.get("type"), given.get("apply_softmax", True))
        yield from () if fault is None else (fault,)


def _variant_faults(given: Mapping[str, Any]) -> Iterator[str]:
    """Labels that would be one, or that a mapping leaves out; what is none of either is said elsewhere."""
    labels = given.get("labels")
    if given.get("type") not in ("classify", "score") or not isinstance(labels, list | tuple):
        return
    if not all(isinstance(label, str) for label in labels):
        return
    try:
        variants = parse_variants(given.get("variants", RULES))
    except ValueError:
        return
    if isinstance(variants, dict) and (unknown := [label for label in variants if label not in labels]):
        yield f"variants are of {unknown[0]!r:.60}, which is no label"
    try:
        all_variants(labels, variants)
    except ValueError as problem:
        yield str(problem)


class Task(Part):
    """What is asked of each row. `docs/tasks.md` has a section for each type."""

    type: TaskName = Field(
        description="`choice`: which label is the likeliest continuation; `classify`: how probable each label is, "
        "however it is written; `score`: how probable a yes is, of a prompt or of items; `embed`: the "
        "prompt as a vector; `generate`: a text; "
        "`loglikelihood`: how likely a given text is; `loglikelihood_rolling`, `perplexity`: how likely the prompt is."
    )
    labels: Annotated[tuple[str, ...] | None, AfterValidator(_labels)] = Field(
        default=None,
        description="`choice`, `classify`, `score`: the labels of all rows, for `choice` white space included; `score` "
        "has `[yes, no]` where nothing is said.",
    )
    labels_column: Name | None = Field(
        default=None, description="The same: a column with each row's labels, a list or its JSON."
    )
    label_token_ids: Annotated[tuple[int, ...] | None, AfterValidator(_token_ids)] = Field(
        default=None, description="`score`: tokens instead of labels."
    )
    variants: Annotated[
        Variants,
        BeforeValidator(parse_variants, json_schema_input_type=list[VariantRule] | dict[str, list[str]]),
    ] = Field(
        default=RULES,
        description="`classify`, `score`: which texts are one label: with or without a space before it, in capitals or "
        "not; `[]`: the label alone; or a mapping of each label to its texts.",
    )
    continuation_column: Name | None = Field(
        default=None, description="`loglikelihood`: a column with the text to score behind the prompt, its context."
    )
    pooling: Pooling = Field(
        default=PoolingParams().pooling,
        description="`embed`: the `last` token's hidden state, the `mean` of all, or a mean `weighted` by position.",
    )
    normalize: bool = Field(default=PoolingParams().normalize, description="`embed`: vectors of length 1.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="`embed`: the first dimensions of a vector, so many; all where it is not said."
    )
    context_len: int = Field(
        default=1, ge=1, description="`loglikelihood_rolling`: tokens of context that every later window has at least."
    )
    items: Annotated[tuple[str, ...] | None, AfterValidator(_items)] = Field(
        default=None, description="`score`: texts of which each is scored with the prompt, which is the query."
    )
    items_column: Name | None = Field(
        default=None, description="The same: a column with each row's items, a list or its JSON."
    )
    item_first: bool = Field(default=False, description="`score`: an item stands before the query, not behind it.")
    apply_softmax: bool = Field(
        default=True, description="`score`: probabilities among the labels; false: among all that could follow."
    )
    reasoning: Reasoning = Reasoning()
    column: Name | None = Field(
        default=None,
        description="A column that says what each row asks: a type's name, or these keys as JSON, which win over the "
        "job's; NULL: the job's own. The job may then have keys of several types.",
    )

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        yield from key_faults(given, defaults, is_mixed=given.get("column") is not None)
        yield from _lone_label(given)
        yield from _variant_faults(given)

    @property
    def columns(self) -> dict[str, str]:
        """The source's columns that it names, by the job's key."""
        named = self.model_dump(include={name for name in type(self).model_fields if name.endswith("column")})
        return {f"task.{key}": column for key, column in named.items() if column is not None}

    @property
    def has_items(self) -> bool:
        return self.items is not None or self.items_column is not None

    def unknown_token(self, vocab_size: int) -> str | None:
        """A line about a token that a model of `vocab_size` does not have, behind its key; None where it has all."""
        beyond = next((token for token in self.label_token_ids or () if not 0 <= token < vocab_size), None)
        said = f"label_token_ids: {beyond} is no token of this model (0 to {vocab_size - 1})"
        return None if beyond is None else said

    def overlaid(self, row: Mapping[str, Any]) -> "Task":
        """The task of a row that gives these keys itself: of its type's others, those that the job has.

        Of keys that exclude each other, the row's wins. Raises ValidationError.
        """
        kind = row.get("type", self.type)
        own = keys_of(kind)
        kept = set() if own is None else own.beside(row)
        return Task.model_validate({**self.model_dump(include=kept, exclude_none=True), "type": kind, **row})

    def too_many_dimensions(self, hidden_size: int) -> str | None:
        """What is wrong with `dimensions` for a model whose hidden states have so many."""
        if self.dimensions is None or self.dimensions <= hidden_size:
            return None
        beyond = f"{self.dimensions} are more than the {hidden_size} of this model's hidden states"
        return f"dimensions: {beyond}; give as many or fewer"
