"""What is read of a prefix node's tokens: once, whoever asks for it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.segments import Ints


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class NodeReads:
    """Of `num_tokens` tokens those from `first` on are wanted, each by some request at the node or below it.

    `scheduled` ones are read by a step that has been made.
    """

    key: int
    num_tokens: int
    first: int
    scheduled: NDArray[np.bool_]

    def pending(self, first: int, last: int) -> Ints:
        """Tokens in `[first, last)` that are wanted and that no step reads as yet."""
        first = max(first, self.first)
        return first + np.flatnonzero(~self.scheduled[first:last])
