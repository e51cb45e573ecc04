"""The log-probabilities of a prefix node's tokens: read once, whoever asks for them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.request import TokenIds
from kernels.segments import Ints


@dataclass(slots=True, eq=False, weakref_slot=True)
class PromptReads:
    """Of `num_tokens` tokens those from `first` on are wanted, each by some request at the node or below it.

    `scheduled` ones are read by a step that has been made; `logprobs`, `is_greedy` (the token is its row's best) and
    `is_finite` hold what such a step came to once it has been taken in; `top_tokens` and `top_logprobs` (num_tokens,
    alternatives) the best tokens at each place. `out_of_memory` says that a device had none for a row to be read.
    """

    key: int
    num_tokens: int
    first: int
    scheduled: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    is_greedy: NDArray[np.bool_]
    is_finite: NDArray[np.bool_]
    top_tokens: TokenIds
    top_logprobs: NDArray[np.float32]
    out_of_memory: bool = False

    @classmethod
    def of(cls, key: int, num_tokens: int) -> "PromptReads":
        """None of the tokens is wanted as yet."""
        flags = np.zeros((3, num_tokens), dtype=np.bool_)
        logprobs = np.full(num_tokens, np.nan, dtype=np.float32)
        none = _no_alternatives(num_tokens, 0)
        return cls(key, num_tokens, num_tokens, flags[0], logprobs, flags[1], flags[2], *none)

    @property
    def num_alternatives(self) -> int:
        return len(self.top_tokens[0])

    def want_alternatives(self, count: int) -> None:
        """Every token is read, and read again if it has been, with `count` alternatives."""
        assert count > self.num_alternatives, (count, self.num_alternatives)
        self.top_tokens, self.top_logprobs = _no_alternatives(self.num_tokens, count)
        self.scheduled[:] = False

    def pending(self, first: int, last: int) -> Ints:
        """Tokens in `[first, last)` that are wanted and that no step reads as yet."""
        first = max(first, self.first)
        return first + np.flatnonzero(~self.scheduled[first:last])

    def take(
        self, tokens: Ints, logprobs: NDArray[np.float32], is_best: NDArray[np.bool_], finite: NDArray[np.bool_]
    ) -> None:
        """What a step read of `tokens`."""
        self.logprobs[tokens], self.is_greedy[tokens], self.is_finite[tokens] = logprobs, is_best, finite

    def take_alternatives(self, tokens: Ints, best: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        """The best tokens at the places of `tokens`; a step may have been made before more of them were wanted."""
        count = min(best.shape[1], self.num_alternatives)
        self.top_tokens[tokens, :count], self.top_logprobs[tokens, :count] = best[:, :count], logprobs[:, :count]


def _no_alternatives(num_tokens: int, count: int) -> tuple[TokenIds, NDArray[np.float32]]:
    return np.full((num_tokens, count), -1, np.int32), np.full((num_tokens, count), np.nan, np.float32)
