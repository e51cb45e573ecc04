"""How long answers become, told by those that have ended and by how far the others are."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Weibull shapes that are tried, and how far a shape's log is from 0, which is one rate for all, before any end is seen.
SHAPES, SPREAD = np.geomspace(0.4, 8.0, 40), 0.5


class AnswerLengths:
    """The product-limit estimate (Kaplan and Meier, Journal of the American Statistical Association 53, 1958).

    An answer that goes on, or was cut at its most tokens, tells only that it is no shorter: the mean of those that have
    ended would be too small early in a run, for short ones end first. Beyond what was seen, the rate of ends goes on as
    it changed so far, by the Weibull distribution that fits best: answers that all become about as long begin to end
    late, and then fast.
    """

    def __init__(self, ended: Sequence[int], going: Sequence[int]) -> None:
        """`ended` are the tokens of answers that ended by themselves, `going` those of the others so far."""
        self._count(np.bincount(np.array(ended, dtype=np.int64)), np.bincount(np.array(going, dtype=np.int64)))

    @classmethod
    def of_counts(cls, ended: Mapping[int, int], going: Mapping[int, int]) -> "AnswerLengths":
        """As many of each length as it is mapped to."""
        lengths = cls((), ())
        lengths._count(_by_length(ended), _by_length(going))
        return lengths

    def _count(self, ended: Ints, going: Ints) -> None:
        size = max(len(ended), len(going), 1)
        ends, others = (np.pad(counts, (0, size - len(counts))) for counts in (ended, going))
        at_risk = np.cumsum((ends + others)[::-1])[::-1]
        self._rates = ends / np.maximum(at_risk, 1)
        self._shape, self._hazard = _weibull(ends, others)
        self._passing = np.empty(0, dtype=np.float64)  # the parts that pass each length, below 0 so that they ascend

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
        if most >= len(self._passing):
            self._passing = -self.going_on(most + 1)
        passing = self._passing[: most + 1]
        if passing[after] < 0:
            return min(int(np.searchsorted(passing, (1.0 - part) * passing[after])), most)
        beyond = np.cumprod(1.0 - self._ending(most + 1)[after + 1 :])
        return min(after + 1 + int(np.count_nonzero(beyond > 1.0 - part)), most)

    def expected(self, lengths: Sequence[int], most: Sequence[int]) -> Ints:
        """What answers that have `lengths` tokens so far become, spread as all are: their mean and their longest."""
        parts = np.modf((np.arange(len(lengths)) + 0.5) * (np.sqrt(5) - 1) / 2)[0]
        asked = zip(parts.tolist(), lengths, most, strict=True)
        return np.array([self.quantile(part, after, cap) for part, after, cap in asked], dtype=np.int64)

    def _ending(self, most: int) -> NDArray[np.float64]:
        """[t]: the part that ends at t tokens of those that have come so far, for t below `most`."""
        seen = self._rates[:most]
        beyond = np.arange(len(seen), most, dtype=np.float64)
        hazard = self._hazard * (beyond**self._shape - np.maximum(beyond - 1, 0) ** self._shape)
        return np.append(seen, 1.0 - np.exp(-hazard))


def _by_length(counts: Mapping[int, int]) -> Ints:
    found = np.zeros(max(counts, default=0) + 1, dtype=np.int64)
    found[[*counts.keys()]] = [*counts.values()]
    return found


def _weibull(ends: Ints, others: Ints) -> tuple[float, float]:
    """Shape k and hazard a of the survival function exp(-a t^k) that fits best, of which k = 1 is one rate of ends.

    The likelihood's greatest for ends and for others that are no shorter (Kalbfleisch and Prentice, The Statistical
    Analysis of Failure Time Data, 2002), where log k is normal around 0 before anything is seen.
    """
    num_ends = int(ends[1:].sum())
    if not num_ends:
        return 1.0, 0.0
    seen = np.flatnonzero((ends + others)[1:]) + 1
    logs, ended, all_of_them = np.log(seen), ends[seen], (ends + others)[seen]
    totals = np.exp(np.outer(SHAPES, logs)) @ all_of_them
    likelihood = num_ends * (np.log(SHAPES) - np.log(totals)) + (SHAPES - 1) * (ended @ logs)
    best = int(np.argmax(likelihood - 0.5 * (np.log(SHAPES) / SPREAD) ** 2))
    return float(SHAPES[best]), num_ends / float(totals[best])
