"""The functions that SQL has: their arguments, what they ask of a model, and what they make of its answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

TEXT, TEXTS, VECTOR = pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())

_CLASSIFY = """\
Which one of these labels fits the text best: {{ labels | join(", ") }}? Answer with the label alone.

Text: {{ text }}"""
_FILTER = """\
{{ prompt }}

Answer with yes or no alone."""
_SCORE = """\
Does the document answer the query? Answer with yes or no alone.

Query: {{ query }}

Document: {{ document }}"""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A prompt that asks for something: the user's turn of a chat, else a text that ends with `cue`."""

    template: str
    cue: str = ""

    def prompt(self, *, chat: bool) -> dict[str, Any]:
        return {"template": self.template, "chat": True} if chat else {"template": self.template + self.cue}


@dataclass(frozen=True, slots=True)
class Plain:
    """A column's text as it is."""

    column: str

    def prompt(self, *, chat: bool) -> dict[str, Any]:
        del chat
        return {"column": self.column}


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A job over a call's arguments, which are the columns that it names.

    `parameters` are those columns with their types; where one of the first `num_required` is NULL, so is the value.
    `value` takes a result's columns, and is of type `returns`. `statements` make the macros that call the function.
    """

    name: str
    parameters: Mapping[str, pa.DataType]
    num_required: int
    returns: pa.DataType
    prompt: Instruction | Plain
    task: Mapping[str, Any]
    value: Callable[[Mapping[str, Any]], object]
    statements: tuple[str, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def job(self, shared: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
        """The content of a job file, `shared` with all other functions."""
        own: dict[str, Any] = {"prompt": self.prompt.prompt(chat=chat), "task": self.task}
        return {**shared, **own, "sampling": self.sampling}


FUNCTIONS = (
    Function(
        name="complete",
        parameters={"prompt": TEXT, "options": TEXT},
        num_required=1,
        returns=TEXT,
        prompt=Instruction("{{ prompt }}"),
        task={"type": "generate"},
        value=lambda result: result["generated_text"],
        statements=("functions/ai_complete_or_error", "functions/ai_complete"),
        sampling={"column": "options"},
    ),
    Function(
        name="classify",
        parameters={"text": TEXT, "labels": TEXTS},
        num_required=2,
        returns=TEXT,
        prompt=Instruction(_CLASSIFY, "\nLabel: "),
        task={"type": "classify", "labels_column": "labels"},
        value=lambda result: result["label"],
        statements=("functions/ai_classify_or_error", "functions/ai_classify"),
    ),
    Function(
        name="filter",
        parameters={"prompt": TEXT},
        num_required=1,
        returns=pa.bool_(),
        prompt=Instruction(_FILTER, "\nAnswer: "),
        task={"type": "score"},
        value=lambda result: result["score"] > 0.5,
        statements=("functions/ai_filter_or_error", "functions/ai_filter"),
    ),
    Function(
        name="score",
        parameters={"query": TEXT, "document": TEXT},
        num_required=2,
        returns=pa.float64(),
        prompt=Instruction(_SCORE, "\nAnswer: "),
        task={"type": "score"},
        value=lambda result: result["score"],
        statements=("functions/ai_score_or_error", "functions/ai_score"),
    ),
    Function(
        name="embed",
        parameters={"text": TEXT, "options": TEXT},
        num_required=1,
        returns=VECTOR,
        prompt=Plain("text"),
        task={"type": "embed", "column": "options"},
        value=lambda result: result["embedding"],
        statements=("functions/ai_embed_or_error", "functions/ai_embed", "functions/ai_similarity"),
    ),
)
