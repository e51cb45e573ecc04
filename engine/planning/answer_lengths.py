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
        seen = max([0, *ended, *going])
        ends = np.bincount(np.asarray(ended, dtype=np.int64), minlength=seen + 1)
        others = np.bincount(np.asarray(going, dtype=np.int64), minlength=seen + 1)
        at_risk = np.cumsum((ends + others)[::-1])[::-1]
        self._rates = ends / np.maximum(at_risk, 1)
        tokens = sum(ended) + sum(going)
        self._rate = len(ended) / tokens if tokens else 0.0

    def quantile(self, part: float, after: int, most: int) -> int:
        """The length that so large a `part` of the answers stay below, of those with `after` tokens that go on."""
        rates = np.full(most + 1, self._rate)
        seen = min(len(self._rates), most + 1)
        rates[:seen] = self._rates[:seen]
        going_on = np.cumprod(1.0 - rates[after + 1 :])
        return min(after + 1 + int(np.count_nonzero(going_on > 1.0 - part)), most)

    def expected(self, lengths: Sequence[int], most: Sequence[int]) -> Ints:
        """What answers that have `lengths` tokens so far become, spread as all are: their mean and their longest."""
        parts = np.modf((np.arange(len(lengths)) + 0.5) * (np.sqrt(5) - 1) / 2)[0]
        asked = zip(parts.tolist(), lengths, most, strict=True)
        return np.array([self.quantile(part, after, cap) for part, after, cap in asked], dtype=np.int64)
