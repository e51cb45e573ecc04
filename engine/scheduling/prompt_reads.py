"""The log-probabilities of a prefix node's tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.node_reads import NodeReads
from kernels.segments import Ints


@dataclass(slots=True, eq=False, kw_only=True)
class PromptReads(NodeReads):
    """`logprobs`, `is_greedy` (the token is its row's best) and `is_finite` hold what a step came to once it has been
    taken in.
    """

    logprobs: NDArray[np.float32]
    is_greedy: NDArray[np.bool_]
    is_finite: NDArray[np.bool_]

    @classmethod
    def of(cls, key: int, num_tokens: int) -> "PromptReads":
        """None of the tokens is wanted as yet."""
        flags = np.zeros((3, num_tokens), dtype=np.bool_)
        return cls(
            key=key,
            num_tokens=num_tokens,
            first=num_tokens,
            scheduled=flags[0],
            logprobs=np.full(num_tokens, np.nan, dtype=np.float32),
            is_greedy=flags[1],
            is_finite=flags[2],
        )

    def take(
        self, tokens: Ints, logprobs: NDArray[np.float32], is_best: NDArray[np.bool_], finite: NDArray[np.bool_]
    ) -> None:
        """What a step read of `tokens`."""
        self.logprobs[tokens], self.is_greedy[tokens], self.is_finite[tokens] = logprobs, is_best, finite
