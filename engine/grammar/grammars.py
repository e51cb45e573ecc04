"""What an engine needs for structured output: made when the first request asks for it."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from engine.grammar.grammar import GrammarError
from engine.grammar.masks import NO_MASKS, MaskMaker, PendingMasks
from engine.grammar.matcher import Matcher
from engine.grammar.vocabulary import Vocabulary
from engine.sampling_params import StructuredOutputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Grammars:
    """Matchers of one engine's texts, and their masks. For the engine's own thread."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast | None", vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Raises GrammarError for a tokenizer whose tokens are no bytes, or none."""
        if self._tokenizer is None:
            raise GrammarError("this engine has no tokenizer")
        return Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)

    @cached_property
    def _maker(self) -> MaskMaker:
        return MaskMaker(self.vocabulary.mask_words)

    def matcher(self, asked: StructuredOutputs, ends: Collection[int], *, forces: bool) -> Matcher:
        """Raises GrammarError for what no text satisfies."""
        return Matcher(self.vocabulary, asked, ends, forces=forces)

    def begin_masks(self, matchers: Sequence[tuple[int, Matcher]]) -> PendingMasks:
        """The masks of a step's matchers, by key, begun in a thread of their own."""
        return self._maker.begin(matchers) if matchers else NO_MASKS
