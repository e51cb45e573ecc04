"""The KV cache's blocks: handed out in runs that are as long as can be, and taken back from their owner."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Counts = TypeVar("Counts", int, NDArray[np.int64])


def blocks_for(num_tokens: Counts, block_size: int) -> Counts:
    """Blocks that hold so many tokens, the last of them perhaps in part."""
    return -(-num_tokens // block_size)


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one owner, as runs `(first, count)`: a long run can be read in place, with no gather."""

    runs: tuple[tuple[int, int], ...]
    block_size: int

    @property
    def num_blocks(self) -> int:
        return sum(count for _, count in self.runs)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Each block's number."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.runs])

    def holds(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(slots,): which of them lie in its blocks."""
        return np.isin(slots // self.block_size, self.blocks)

    def slots(self, start: int, end: int) -> list[tuple[int, int]]:
        """Slot ranges `[first, last)` that hold tokens `[start, end)` of this table, in token order."""
        ranges, offset = [], 0
        for first, count in self.runs:
            low, high = max(start - offset, 0), min(end - offset, count * self.block_size)
            if low < high:
                ranges.append((first * self.block_size + low, first * self.block_size + high))
            offset += count * self.block_size
        return ranges


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. `peak_used` is the most that were in use at once."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks
        self.peak_used = 0
        self._free: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self, num_tokens: int) -> BlockTable:
        """Room for `num_tokens` tokens, in one run where one fits, else in as few as can be."""
        return BlockTable(tuple(self._take_all(blocks_for(num_tokens, self.block_size))), self.block_size)

    def extend(self, table: BlockTable, num_blocks: int) -> None:
        """So many blocks more behind the table's own; those right behind its last run, as far as they are free."""
        first, count = table.runs[-1]
        index = bisect_left(self._free, (first + count, 0))
        if index < len(self._free) and self._free[index][0] == first + count:
            taken = min(num_blocks, self._free[index][1])
            self._cut(index, taken)
            table.runs = (*table.runs[:-1], (first, count + taken))
            num_blocks -= taken
        if num_blocks:
            table.runs += tuple(self._take_all(num_blocks))

    def free(self, table: BlockTable) -> None:
        """Takes the blocks back; the table is empty from then on."""
        assert table.runs, "freed twice"
        for run in table.runs:
            self._give_back(run)
        self.num_free += table.num_blocks
        table.runs = ()
        assert self.num_free <= self.num_blocks, (self.num_free, self.num_blocks)

    def _take_all(self, wanted: int) -> list[tuple[int, int]]:
        assert 0 < wanted <= self.num_free, (wanted, self.num_free)
        runs = []
        while wanted:
            run = self._take(wanted)
            runs.append(run)
            wanted -= run[1]
        return runs

    def _take(self, wanted: int) -> tuple[int, int]:
        """The first free run that holds all that is wanted, else the longest one."""
        index = next((i for i, (_, count) in enumerate(self._free) if count >= wanted), None)
        if index is None:
            index = max(range(len(self._free)), key=lambda i: self._free[i][1])
        taken = min(self._free[index][1], wanted)
        return self._cut(index, taken), taken

    def _cut(self, index: int, taken: int) -> int:
        """Takes so many blocks off the front of a free run; returns the first."""
        first, count = self._free[index]
        if taken == count:
            del self._free[index]
        else:
            self._free[index] = (first + taken, count - taken)
        self.num_free -= taken
        self.peak_used = max(self.peak_used, self.num_used)
        return first

    def _give_back(self, run: tuple[int, int]) -> None:
        first, count = run
        index = bisect_left(self._free, run)
        if index < len(self._free) and self._free[index][0] == first + count:
            count += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == first:
            index -= 1
            before, length = self._free.pop(index)
            first, count = before, count + length
        insort(self._free, (first, count))
