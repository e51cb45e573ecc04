"""What each of a row's labels is worth when it may be written in several ways."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LabelMasses:
    """`logprobs[i]` is the log of all probability that is on texts for the label `names[i]`."""

    names: tuple[str, ...]
    logprobs: Floats

    @classmethod
    def of(cls, names: Sequence[str], logprobs: Floats) -> "LabelMasses":
        """`logprobs` are of texts, `names[i]` is the label that text i stands for."""
        distinct = tuple(dict.fromkeys(names))
        place = np.array([distinct.index(name) for name in names])
        return cls(distinct, np.array([np.logaddexp.reduce(logprobs[place == i]) for i in range(len(distinct))]))

    @property
    def best(self) -> int:
        """The likeliest label, the first of equals."""
        return int(np.argmax(self.logprobs))

    @property
    def margin(self) -> float | None:
        """By how much the likeliest label's log-likelihood is ahead of the next one's; None for a label alone."""
        if len(self.names) < 2:
            return None
        behind, best = np.partition(self.logprobs, -2)[-2:]
        return float(best - behind)

    @property
    def probs(self) -> Floats:
        return np.exp(self.logprobs)

    @property
    def shares(self) -> Floats:
        """Each label's part of what is on any of them, as a softmax over `logprobs` has it."""
        shares: Floats = np.exp(self.logprobs - np.logaddexp.reduce(self.logprobs))
        return shares

    @property
    def missing(self) -> float:
        """The probability that is on no label; never less than 0, where a label's text begins with another's."""
        return max(float(-np.expm1(np.logaddexp.reduce(self.logprobs))), 0.0)

    def by_name(self, values: Floats) -> list[tuple[str, float]]:
        """As a map's column takes them."""
        return list(zip(self.names, values.tolist(), strict=True))
