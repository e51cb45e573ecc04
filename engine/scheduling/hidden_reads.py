"""The hidden states of a prefix node's tokens, as the sum that a pooling makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.pooling_params import Pooling
from engine.scheduling.node_reads import NodeReads
from kernels.segments import Ints


@dataclass(slots=True, eq=False, kw_only=True)
class HiddenReads(NodeReads):
    """`sum` (hidden_size,) is of all tokens that steps have read and that have been taken in; None before the first.

    The node's first token is at position `start` of the prompt.
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

    def take(self, part: NDArray[np.float32]) -> None:
        """A step's sum over some of the tokens, which is all of them in the end."""
        self.sum = part.astype(np.float64) if self.sum is None else self.sum + part


def pooled(parts: Sequence[HiddenReads], num_tokens: int) -> NDArray[np.float64]:
    """The mean over a prompt of so many tokens, out of the sums of the nodes on its path that its pooling takes."""
    weight = {"last": 1, "mean": num_tokens, "weighted": num_tokens * (num_tokens + 1) // 2}[parts[0].pooling]
    sums = [part.sum for part in parts if part.sum is not None]
    assert len(sums) == len(parts), (len(sums), len(parts))
    total: NDArray[np.float64] = np.sum(sums, axis=0)
    return total / weight
