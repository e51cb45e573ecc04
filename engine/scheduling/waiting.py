"""The sequences that are not admitted, in the plan's order."""

import heapq

from engine.scheduling.block_pool import blocks_for
from engine.scheduling.sequence import Sequence


class Waiting:
    """`num_blocks` are what all that wait would decode into, each at its most."""

    def __init__(self, block_size: int) -> None:
        self.num_blocks = 0
        self._block_size = block_size
        self._heap: list[tuple[tuple[int, int, int], int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.order, sequence.key, sequence))
        self.num_blocks += self._most_blocks(sequence)

    def head(self) -> Sequence | None:
        """The next to admit."""
        while self._heap and self._heap[0][2].finished:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> None:
        """The head is admitted."""
        *_, sequence = heapq.heappop(self._heap)
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """It waits no more: it is admitted, or it ended first."""
        self.num_blocks -= self._most_blocks(sequence)

    def _most_blocks(self, sequence: Sequence) -> int:
        return blocks_for(sequence.decode_kv_tokens, self._block_size)
