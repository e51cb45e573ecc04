"""A model's tokens as bytes, which is how a grammar follows them."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from engine.grammar.grammar import GrammarError, compiled, one_line
from engine.sampling_params import StructuredOutputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What SentencePiece's decoder says in the words of those that the library knows.
_METASPACE_AS_BYTES = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
# Grammars whose compiled form is kept. Rows with grammars of their own would fill the memory.
_KEPT = 256


class Vocabulary:
    """The tokens of one model, and matchers over them. Not for several threads at once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size` is the width of logits. Raises GrammarError for tokens that are no bytes, as WordPiece's."""
        known = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=True)
        ends = list(eos_token_ids) or [tokenizer.eos_token_id]
        if ends == [None]:
            raise GrammarError("the model has no token that ends a text")
        try:
            self._tokens = LLTokenizer(_as_json(tokenizer), n_vocab=max(vocab_size, known), eos_token=ends)
        except ValueError as problem:
            raise GrammarError(f"the tokens of this model's tokenizer are no bytes ({one_line(problem)})") from None
        self.eos_token_ids = frozenset(ends)
        self._fresh = lru_cache(maxsize=_KEPT)(self._compile)

    @property
    def mask_words(self) -> int:
        """Words of 32 bits in a mask over all tokens."""
        return -(-self._tokens.vocab_size // 32)

    def machine(self, asked: StructuredOutputs) -> LLMatcher:
        """At the beginning of a text. Raises GrammarError for what no text satisfies."""
        return self._fresh(asked).deep_copy()

    def text(self, token_ids: Sequence[int]) -> str:
        """What the grammar has read; a character that is cut off at the end is a replacement character."""
        return self._tokens.decode_bytes(list(token_ids)).decode("utf-8", errors="replace")

    def _compile(self, asked: StructuredOutputs) -> LLMatcher:
        machine = LLMatcher(self._tokens, compiled(asked), log_level=0)
        if machine.is_error():
            raise GrammarError(one_line(machine.get_error()))
        first = machine.deep_copy()
        if not first.consume_tokens(first.compute_ff_tokens()):
            raise GrammarError("no text satisfies it: what it asks for never ends")
        mask = np.frombuffer(first.compute_bitmask(), dtype=np.uint8)
        allowed = set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())
        if not first.is_accepting() and allowed <= self.eos_token_ids:
            raise GrammarError("no text satisfies it")
        return machine


def _as_json(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The tokenizer's own file, without truncation and padding."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None}
    if (content.get("decoder") or {}).get("type") == "Metaspace":
        content["decoder"] = _METASPACE_AS_BYTES
    return json.dumps(content)
