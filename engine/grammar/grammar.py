"""What structured output asks for, as a grammar of llguidance's."""

import json
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from llguidance import LLMatcher, grammar_from, regex_to_lark

from engine.sampling_params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

BAD_GRAMMAR = "BAD_GRAMMAR"
"""What the row's text has to be is no grammar, or one that no text satisfies.

Cure: mend the schema, pattern or grammar of its `structured_outputs` at the place that the message names.
"""

# JSON is laid out as Python's `json.dumps` does: a model that may choose its white space may write nothing else, and
# what it may not choose need not be decoded.
_LAYOUT: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OBJECT = '{"type": "object"}'
# What decides which texts a grammar allows: counted up when `_LAYOUT` or `_grammar` change, and the library's version.
GRAMMAR_VERSION = f"1, llguidance {version('llguidance')}"
# A message of the library may go on with the state of its parser.
_LONGEST_MESSAGE = 300


class GrammarError(Exception):
    """What is asked for is no grammar, or one that no text satisfies. Its message is one line.

    Seen as: the row's `BAD_GRAMMAR`, or a UserError where the job has the grammar.
    """


@lru_cache(maxsize=256)
def compiled(asked: StructuredOutputs) -> str:
    """The grammar in the library's own form. Raises GrammarError."""
    try:
        text = _grammar(asked)
    except ValueError as problem:
        raise GrammarError(one_line(problem)) from None
    fault = LLMatcher.validate_grammar(text)
    if fault and not fault.startswith("WARNING"):
        raise GrammarError(one_line(fault))
    return text


def _grammar(asked: StructuredOutputs) -> str:
    if asked.json is not None:
        if not isinstance(json.loads(asked.json), dict):
            raise ValueError("a schema has to be a mapping")
        return LLMatcher.grammar_from_json_schema(asked.json, overrides=_LAYOUT)
    if asked.json_object:
        return LLMatcher.grammar_from_json_schema(_OBJECT, overrides=_LAYOUT)
    if asked.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_literal, asked.choice)))
    if asked.regex is not None:
        # Digits, letters and spaces are ASCII's, as in the patterns of a schema: versions of Unicode differ in theirs.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(asked.regex, 'dws')}/")
    assert asked.grammar is not None
    return grammar_from("grammar", asked.grammar)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def one_line(problem: object) -> str:
    """What the library says, without what it says of its own state."""
    lines = [line.strip() for line in str(problem).partition("<state>")[0].splitlines() if line.strip()]
    return " ".join(lines)[:_LONGEST_MESSAGE]
