"""The log-probabilities of a prefix node's tokens: read once, whoever asks for them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.segments import Ints


@dataclass(slots=True, eq=False, weakref_slot=True)
class PromptReads:
    """Of `num_tokens` tokens those from `first` on are wanted, each by some request at the node or below it.

    `scheduled` ones are read by a step that has been made; `logprobs`, `is_greedy` (the token is its row's best) and
    `is_finite` hold what such a step came to once it has been taken in; `out_of_memory` says that a device had none for
    a row to be read.
    """

    key: int
    num_tokens: int
    first: int
    scheduled: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    is_greedy: NDArray[np.bool_]
    is_finite: NDArray[np.bool_]
    out_of_memory: bool = False

    @classmethod
    def of(cls, key: int, num_tokens: int) -> "PromptReads":
        """None of the tokens is wanted as yet."""
        flags = np.zeros((3, num_tokens), dtype=np.bool_)
        logprobs = np.full(num_tokens, np.nan, dtype=np.float32)
        return cls(key, num_tokens, num_tokens, flags[0], logprobs, flags[1], flags[2])

    def pending(self, first: int, last: int) -> Ints:
        """Tokens in `[first, last)` that are wanted and that no step reads as yet."""
        first = max(first, self.first)
        return first + np.flatnonzero(~self.scheduled[first:last])

    def take(
        self, tokens: Ints, logprobs: NDArray[np.float32], is_best: NDArray[np.bool_], finite: NDArray[np.bool_]
    ) -> None:
        """What a step read of `tokens`."""
        self.logprobs[tokens], self.is_greedy[tokens], self.is_finite[tokens] = logprobs, is_best, finite
