"""The log-probabilities of a prefix node's tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.request import TokenIds
from engine.scheduling.node_reads import NodeReads
from kernels.segments import Ints


@dataclass(slots=True, eq=False, kw_only=True)
class PromptReads(NodeReads):
    """`logprobs`, `is_greedy` (the token is its row's best) and `is_finite` hold what a step came to once it has been
    taken in; `top_tokens` and `top_logprobs` (num_tokens, alternatives) the best tokens at each place. `read_with` says
    with how many of them a token is read by a step that has been made, -1 by none.
    """

    logprobs: NDArray[np.float32]
    is_greedy: NDArray[np.bool_]
    is_finite: NDArray[np.bool_]
    top_tokens: TokenIds
    top_logprobs: NDArray[np.float32]
    read_with: Ints

    @classmethod
    def of(cls, key: int, num_tokens: int) -> "PromptReads":
        """None of the tokens is wanted as yet."""
        flags = np.zeros((3, num_tokens), dtype=np.bool_)
        top_tokens, top_logprobs = _no_alternatives(num_tokens, 0)
        return cls(
            key=key,
            num_tokens=num_tokens,
            first=num_tokens,
            scheduled=flags[0],
            logprobs=np.full(num_tokens, np.nan, dtype=np.float32),
            is_greedy=flags[1],
            is_finite=flags[2],
            top_tokens=top_tokens,
            top_logprobs=top_logprobs,
            read_with=np.full(num_tokens, -1, dtype=np.int64),
        )

    @property
    def num_alternatives(self) -> int:
        return len(self.top_tokens[0])

    def want_alternatives(self, count: int) -> None:
        """Every token is read, and read again if it has been, with `count` alternatives; what has been read stays."""
        before = self.num_alternatives
        assert count > before, (count, before)
        tokens, logprobs = _no_alternatives(self.num_tokens, count)
        tokens[:, :before], logprobs[:, :before] = self.top_tokens, self.top_logprobs
        self.top_tokens, self.top_logprobs = tokens, logprobs
        self.scheduled[:] = False

    def schedule(self, tokens: Ints) -> None:
        """A step reads them."""
        self.scheduled[tokens], self.read_with[tokens] = True, self.num_alternatives

    def are_scheduled(self, first: int, num_alternatives: int) -> bool:
        """Whether steps have been made that read all tokens from `first` on, with so many alternatives."""
        return bool((self.read_with[first:] >= num_alternatives).all())

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
