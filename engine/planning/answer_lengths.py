"""How long answers become, told by those that have ended and by how far the others are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class AnswerLengths:
    """The product-limit estimate (Kaplan and Meier, Journal of the American Statistical Association 53, 1958).

    An answer that goes on, or was cut at its most tokens, tells only that it is no shorter: the mean of those that have
    ended would be too small early in a run, for short ones end first. Beyond what was seen, answers end at the rate of
    all that was.
    """

    def __init__(self, ended: Sequence[int], going: Sequence[int]) -> None:
        """`ended` are the tokens of answers that ended by themselves, `going` those of the others so far."""
        self._count(np.bincount(np.array(ended, dtype=np.int64)), np.bincount(np.array(going, dtype=np.int64)))

    @classmethod
    def of_counts(cls, ended: Ints, going: Ints) -> "AnswerLengths":
        """As many of each length as the array has at that place."""
        lengths = cls((), ())
        lengths._count(ended, going)
        return lengths

    def _count(self, ended: Ints, going: Ints) -> None:
        size = max(len(ended), len(going), 1)
        ends, others = (np.pad(counts, (0, size - len(counts))) for counts in (ended, going))
        at_risk = np.cumsum((ends + others)[::-1])[::-1]
        self._rates = ends / np.maximum(at_risk, 1)
        tokens = int(np.dot(np.arange(size), ends + others))
        self._rate = int(ends.sum()) / tokens if tokens else 0.0

    def going_on(self, most: int) -> NDArray[np.float64]:
        """The part of all answers that has more than 0, 1, ..., `most` - 1 tokens, if each may have `most`."""
        return np.cumprod(1.0 - self._ending(most), dtype=np.float64)

    def mean(self, most: int) -> float:
        """Tokens of an answer that may have `most`."""
        return float(self.going_on(most).sum())

    def tokens_left(self, going: Sequence[int], most: int) -> float:
        """Tokens that answers which have `going` so far, and may have `most`, get yet; each gets one at least."""
        going_on = self.going_on(most)
        behind = np.append(np.cumsum(going_on[::-1])[::-1], 0.0)  # summed from each length to the end
        so_far = np.minimum(np.array(going, dtype=np.int64), most - 1)
        left = behind[so_far] / np.maximum(going_on[so_far], 1e-300)
        return float(np.where(going_on[so_far] > 0, left, 1.0).sum())

    def quantile(self, part: float, after: int, most: int) -> int:
        """The length that so large a `part` of the answers stay below, of those with `after` tokens that go on."""
        going_on = np.cumprod(1.0 - self._ending(most + 1)[after + 1 :])
        return min(after + 1 + int(np.count_nonzero(going_on > 1.0 - part)), most)

    def expected(self, lengths: Sequence[int], most: Sequence[int]) -> Ints:
        """What answers that have `lengths` tokens so far become, spread as all are: their mean and their longest."""
        parts = np.modf((np.arange(len(lengths)) + 0.5) * (np.sqrt(5) - 1) / 2)[0]
        asked = zip(parts.tolist(), lengths, most, strict=True)
        return np.array([self.quantile(part, after, cap) for part, after, cap in asked], dtype=np.int64)

    def _ending(self, length: int) -> NDArray[np.float64]:
        """The part of the answers with 0, 1, ..., `length` - 1 tokens that ends there, of those that come so far."""
        rates = np.full(length, self._rate)
        seen = min(len(self._rates), length)
        rates[:seen] = self._rates[:seen]
        return rates
