"""One text on its way through its grammar."""

from collections import deque
from collections.abc import Collection

from llguidance import LLMatcher

from engine.grammar.grammar import one_line
from engine.grammar.vocabulary import Vocabulary
from engine.sampling_params import StructuredOutputs


class Matcher:
    """Follows a text token by token, and says what may come next.

    `ends` are the tokens that end the text where the grammar lets it end, the model's own among them or not. With
    `forces`, what the grammar leaves no choice of is put in as the tokenizer itself would encode it: a model that may
    choose its own tokens for the same text is only asked where there is more than one text.
    """

    def __init__(
        self, vocabulary: Vocabulary, asked: StructuredOutputs, ends: Collection[int], *, forces: bool
    ) -> None:
        """Raises GrammarError for what no text satisfies."""
        self.machine: LLMatcher = vocabulary.machine(asked)
        self._vocabulary = vocabulary
        self._token_ids: list[int] = []
        self.ended = False
        self.own_ends = tuple(token for token in ends if token not in vocabulary.eos_token_ids)
        self._ends = frozenset(ends)
        self._forces = forces
        self._forced: deque[int] = deque()
        self._look_ahead()

    @property
    def accepts(self) -> bool:
        """Whether the text may end here."""
        return self.machine.is_accepting()

    @property
    def fault(self) -> str | None:
        """Why it follows the text no further: a grammar too complex for the library's limits."""
        return one_line(self.machine.get_error()) if self.machine.is_error() else None

    @property
    def forced(self) -> int | None:
        """The next token, where it has to be this one."""
        return self._forced[0] if self._forced else None

    @property
    def text(self) -> str:
        """What the grammar has read, without the token that ended it."""
        return self._vocabulary.text(self._token_ids)

    def take(self, token: int) -> None:
        """The text goes on by a token that the last mask allowed, or ends with it."""
        if token in self._ends and self.accepts:
            self.ended = True
            return
        self.machine.consume_token(token)
        self._token_ids.append(token)
        if self._forced:
            assert self._forced.popleft() == token, token
        self._look_ahead()

    def take_forced(self, most: int) -> tuple[int, ...]:
        """The tokens that follow whatever the model says, `most` of them at most, which it takes."""
        taken: list[int] = []
        while self._forced and len(taken) < most:
            taken.append(self._forced[0])
            self.take(taken[-1])
        return tuple(taken)

    def _look_ahead(self) -> None:
        self.ended = self.machine.is_stopped() and not self.machine.is_error()
        if self._forces and not self._forced and not self.ended:
            self._forced.extend(self.machine.compute_ff_tokens())
