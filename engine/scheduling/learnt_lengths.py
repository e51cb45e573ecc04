"""How long answers become, learnt while they are made."""

from collections import Counter
from collections.abc import Iterable

from engine.scheduling.answer_lengths import AnswerLengths
from engine.scheduling.sequence import Sequence

# Ends that have to be seen before anything is believed of the others; then the estimate is made again whenever as many
# more have been seen as an eighth of them.
FIRST_ENDS, MORE_ENDS = 16, 8


def kind_of(sequence: Sequence) -> int:
    return sequence.request.max_tokens.bit_length()


class LearntLengths:
    """Of texts of one kind, which those are that may have about as many tokens: between two powers of two.

    Where one row may have far more than another, it is asked something else; where its prompt leaves it a little more
    of the context, it is not.
    """

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._ended: Counter[int] = Counter()
        self._cut: Counter[int] = Counter()
        self._seen, self._next = 0, FIRST_ENDS
        self._lengths: AnswerLengths | None = None

    def end(self, length: int, at_most: int) -> None:
        """One has ended with so many tokens, of `at_most`."""
        counts = self._cut if length >= at_most else self._ended
        counts[length] += 1
        self._seen += 1

    def learn(self, texts: Iterable[Sequence]) -> None:
        """While others go on; they are visited where the estimate is made again."""
        if self._seen >= self._next:
            self._next = self._seen + max(self._seen // MORE_ENDS, 1)
            going = Counter(one.num_output_tokens for one in texts if kind_of(one) == self._kind)
            self._lengths = AnswerLengths.of_counts(self._ended, self._cut + going)

    def likely(self, part: float, after: int, most: int) -> int:
        """Tokens that so large a `part` of texts do not exceed, of those with `after` tokens that go on; `most`, where
        too few have ended to say.
        """
        return most if self._lengths is None else self._lengths.quantile(part, after, most)
