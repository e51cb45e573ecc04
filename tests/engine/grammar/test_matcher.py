"""Any kind of tokenizer writes what a grammar asks, byte for byte, whatever is drawn of what is allowed."""

import json
import re
from random import Random

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

from engine.grammar.grammar import GrammarError
from engine.grammar.masks import MaskMaker
from engine.grammar.matcher import Matcher
from engine.grammar.vocabulary import Vocabulary
from engine.sampling_params import StructuredOutputs
from tests.engine.grammar.random_schemas import random_schema
from tests.engine.grammar.tokenizers import byte_fallback, byte_level, fast, prefix_space, unigram, word_piece

MORE_LOGITS = 37  # of rows that a head has beside the tokenizer's tokens
RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=[byte_level, byte_fallback, prefix_space, unigram])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return of(fast(request.param))


def of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(tokenizer, len(tokenizer) + MORE_LOGITS, [tokenizer.eos_token_id])


def schema(content: object) -> StructuredOutputs:
    return StructuredOutputs(json=json.dumps(content))


def allowed(vocabulary: Vocabulary, matcher: Matcher) -> list[int]:
    """The tokens of its mask."""
    mask = MaskMaker(vocabulary.mask_words).begin([(7, matcher)]).of(7)
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def drawn(vocabulary: Vocabulary, asked: StructuredOutputs, seed: int, *, forces: bool = True) -> str | None:
    """A text of allowed tokens, each drawn; None where it has not ended after so many."""
    matcher, draw = Matcher(vocabulary, asked, vocabulary.eos_token_ids, forces=forces), Random(seed)
    for _ in range(400):
        matcher.take_forced(400)
        if matcher.ended:
            return matcher.text
        matcher.take(draw.choice(allowed(vocabulary, matcher)))
        assert matcher.fault is None
    return None


def test_any_tokenizer_writes_what_schemas_ask(vocabulary: Vocabulary) -> None:
    texts = {seed: drawn(vocabulary, schema(random_schema(seed)), seed) for seed in range(40)}
    ended = {seed: text for seed, text in texts.items() if text is not None}
    assert len(ended) > 30
    for seed, text in ended.items():
        Draft202012Validator(random_schema(seed)).validate(json.loads(text))


@pytest.mark.parametrize("regex", [r"[A-Z][a-z]{2,5}( \d{1,3})?", r" a+b?", r"(ja|nein|größe|日本)", r"\w{3}\.\d\d"])
def test_any_tokenizer_writes_what_a_pattern_matches(vocabulary: Vocabulary, regex: str) -> None:
    """From the first character to the last: a space at the beginning too."""
    texts = [drawn(vocabulary, StructuredOutputs(regex=regex), seed) for seed in range(5)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 3
    assert all(re.fullmatch(regex, text, re.ASCII) for text in ended), ended


def test_choices_are_written_whole_whatever_they_hold(vocabulary: Vocabulary) -> None:
    choices = ("yes", "yes!", ' "quoted" \\n', "new\nline\ttab", "größe 日本 😀", "", "\x01")
    found = {drawn(vocabulary, StructuredOutputs(choice=choices), seed) for seed in range(80)}
    assert found == set(choices)


GRAMMAR = """
start: sum
sum: term (" + " term)*
term: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]?/
"""


@pytest.mark.parametrize(
    "text", [GRAMMAR, 'root ::= t (" + " t)*\nt ::= [1-9] [0-9]? | "(" root ")"'], ids=["Lark", "GBNF"]
)
def test_a_grammar_is_followed_through_its_brackets(vocabulary: Vocabulary, text: str) -> None:
    """A sum is what Python evaluates."""
    found = [drawn(vocabulary, StructuredOutputs(grammar=text), seed) for seed in range(10)]
    sums = [text for text in found if text is not None]
    assert len(sums) > 3
    for text in sums:
        assert re.fullmatch(r"[0-9+() ]+", text)
        assert eval(text) > 0


def test_forced_text_is_what_the_tokenizer_makes_of_it() -> None:
    """Its tokens are the ones that the same text has in a prompt, up to a border that the text to come may move."""
    tokenizer = fast(byte_level)
    vocabulary = of(tokenizer)
    matcher = Matcher(vocabulary, schema(RECORD), vocabulary.eos_token_ids, forces=True)
    forced = matcher.take_forced(100)
    text = '{"name": "Ann", "n": 5}'
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert list(forced) == whole[: len(forced)]
    assert tokenizer.decode(forced) in ('{"name":', '{"name": "')
    free = Matcher(vocabulary, schema(RECORD), vocabulary.eos_token_ids, forces=False)
    assert free.take_forced(100) == ()
    assert free.forced is None


def test_what_is_forced_may_come_in_parts_and_one_by_one() -> None:
    """The same tokens, `most` at a time or each as the only one of its mask."""
    vocabulary = of(fast(byte_level))
    asked = schema({"const": "a long text that nothing is left open of"})
    whole = Matcher(vocabulary, asked, (), forces=True)
    tokens = whole.take_forced(100)
    assert len(tokens) > 5
    assert whole.ended
    assert whole.text == '"a long text that nothing is left open of"'
    parts = Matcher(vocabulary, asked, (), forces=True)
    assert parts.take_forced(3) + parts.take_forced(100) == tokens
    single = Matcher(vocabulary, asked, (), forces=True)
    for token in tokens:
        assert allowed(vocabulary, single) == [token]
        single.take(token)
    assert single.ended


def test_a_text_may_end_where_its_grammar_lets_it(vocabulary: Vocabulary) -> None:
    """With the model's own end, or a token that the row names besides."""
    other = 5
    (eos,) = vocabulary.eos_token_ids
    for end in (eos, other):
        matcher = Matcher(vocabulary, StructuredOutputs(regex="(xy)*z?"), (eos, other), forces=True)
        assert {eos, other} <= set(allowed(vocabulary, matcher))
        matcher.take(end)
        assert matcher.ended
        assert matcher.text == ""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (schema({"type": "strnig"}), "Invalid type: strnig"),
        (schema({"type": "integer", "minimum": 3, "maximum": 2}), "Unsatisfiable schema: minimum (3) is greater than"),
        (schema({"$ref": "#"}), "no text satisfies it"),
        (schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "never ends"),
        (schema({"not": {"type": "null"}}), 'Unimplemented keys: ["not"]'),
        (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (schema({"$ref": "#/$defs/none"}), "'/$defs/none' does not exist"),
        (schema({"type": "string", "pattern": "(?!a)b"}), "look-around"),
        (schema([1]), "a schema has to be a mapping"),
        (StructuredOutputs(json="{"), "Expecting property name"),
        (StructuredOutputs(regex="(a"), "unclosed group"),
        (StructuredOutputs(grammar="start: nope"), 'unknown name: "nope"'),
        (StructuredOutputs(grammar='root ::= "x" y'), "Rule 'y' not found"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(vocabulary: Vocabulary, asked: StructuredOutputs, said: str) -> None:
    with pytest.raises(GrammarError) as refused:
        vocabulary.machine(asked)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tokens_that_are_no_bytes_are_refused_by_name() -> None:
    with pytest.raises(GrammarError, match=r"tokens of this model's tokenizer are no bytes .*WordPiece"):
        of(fast(word_piece))
