"""The hidden states of a prefix node's tokens, as the sum that a pooling makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.pooling_params import Pooling
from engine.scheduling.node_reads import NodeReads
from kernels.segments import Ints

# What a digit of a number counts, the most first. A sum of whole digits is exact in float64, and so the same in any
# order, while it is below 2**53: of numbers up to 2**12, that count 2**33 times together, in the weighted mean of
# 100,000 tokens. What is left behind the last is dropped (exact accumulators: Kulisch, 1971; Demmel & Nguyen, 2013).
DIGITS = (2.0**-8, 2.0**-28, 2.0**-48)


@dataclass(slots=True, eq=False, kw_only=True)
class HiddenReads(NodeReads):
    """`sum` is of all tokens that steps have read and that have been taken in; None before the first.

    (hidden_size,), or exact in digits (DIGITS, hidden_size). The node's first token is at position `start` of the
    prompt.
    """

    pooling: Pooling
    start: int
    sum: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, key: int, start: int, num_tokens: int, pooling: Pooling) -> "HiddenReads":
        """All that the pooling takes of a node is wanted."""
        return cls(
            key=key,
            num_tokens=num_tokens,
            first=num_tokens - 1 if pooling == "last" else 0,
            scheduled=np.zeros(num_tokens, dtype=np.bool_),
            pooling=pooling,
            start=start,
        )

    def weights(self, tokens: Ints) -> Ints:
        """How often each token's hidden state counts."""
        return self.start + tokens + 1 if self.pooling == "weighted" else np.ones_like(tokens)

    def take(self, part: NDArray[np.float32] | NDArray[np.float64]) -> None:
        """A step's sum over some of the tokens, which is all of them in the end."""
        self.sum = part.astype(np.float64) if self.sum is None else self.sum + part


def pooled(parts: Sequence[HiddenReads], num_tokens: int) -> NDArray[np.float64]:
    """The mean over a prompt of so many tokens, out of the sums of the nodes on its path that its pooling takes."""
    weight = {"last": 1, "mean": num_tokens, "weighted": num_tokens * (num_tokens + 1) // 2}[parts[0].pooling]
    sums = [part.sum for part in parts if part.sum is not None]
    assert len(sums) == len(parts), (len(sums), len(parts))
    total: NDArray[np.float64] = np.sum(sums, axis=0)
    whole: NDArray[np.float64] = from_digits(total) if total.ndim == 2 else total
    return whole / weight


def from_digits(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(DIGITS, hidden_size) to (hidden_size,): the least first, in one order."""
    total: NDArray[np.float64] = np.zeros_like(sums[0])
    for digit, step in zip(sums[::-1], DIGITS[::-1], strict=True):
        total += digit * step
    return total
