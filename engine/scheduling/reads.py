"""What is read off a step's rows: one list, whatever is asked of a row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.segments import Ints


class ReadKind(IntEnum):
    """How a row is read, and for whom. Any row of a step may be read, and any number of times.

    Whoever is below a node reads the same of its rows, so that a PROMPT read is the node's and not a sequence's.
    What a HIDDEN read asks for needs no logits, so that its row does not go through the head for it.

    A kind to come is one more member here, and in `StepReader` what is made of its rows and who takes it.
    """

    SAMPLE = 0  # the next token of sequence `key`
    LABEL = 1  # the log-probability of `target`, a token of label `place` of sequence `key`
    PROMPT = 2  # the log-probability of `target`, token `place` of the node whose `PromptReads` have `key`
    HIDDEN = 3  # the row's hidden state, `place` times, for the sum of the node whose `HiddenReads` have `key`


class Read(NamedTuple):
    """One read of a row. A SAMPLE read has neither target nor place, a HIDDEN read no target."""

    row: int
    key: int
    kind: ReadKind = ReadKind.SAMPLE
    target: int = -1
    place: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """`table` (reads, 5), contiguous: the fields of each `Read`, those of a kind together.

    SAMPLE reads come first, in the order of rows: the token that read i samples is the i-th of the step's tokens.
    """

    table: Ints

    def __post_init__(self) -> None:
        assert self.table.shape[1:] == (5,), self.table.shape
        assert self.table.dtype == np.int64, self.table.dtype

    @classmethod
    def of(cls, reads: Iterable[Read], *more: "Reads") -> "Reads":
        """All of them, in any order of kinds."""
        # Four times as fast as `np.array`, which looks at each kind as an object.
        table = np.fromiter(chain.from_iterable(reads), dtype=np.int64).reshape(-1, 5)
        if more:
            table = np.concatenate((table, *(reads.table for reads in more)))
        return cls(table[np.argsort(table[:, 2], kind="stable")])

    @classmethod
    def samples(cls, rows: Ints, keys: Ints) -> "Reads":
        """A SAMPLE read of each of `rows`, for sequence `keys[i]`."""
        table = np.full((len(rows), 5), -1, dtype=np.int64)
        table[:, 0], table[:, 1], table[:, 2] = rows, keys, ReadKind.SAMPLE
        return cls(table)

    @classmethod
    def prompt(cls, rows: Ints, key: int, targets: NDArray[np.int32], places: Ints) -> "Reads":
        """A PROMPT read of each of `rows`."""
        table = np.empty((len(rows), 5), dtype=np.int64)
        table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4] = rows, key, ReadKind.PROMPT, targets, places
        return cls(table)

    @classmethod
    def hidden(cls, rows: Ints, key: int, weights: Ints) -> "Reads":
        """A HIDDEN read of each of `rows`."""
        table = np.full((len(rows), 5), -1, dtype=np.int64)
        table[:, 0], table[:, 1], table[:, 2], table[:, 4] = rows, key, ReadKind.HIDDEN, weights
        return cls(table)

    def of_kind(self, kind: ReadKind) -> "Reads":
        first, last = self.kind.searchsorted(int(kind)), self.kind.searchsorted(int(kind), "right")
        return Reads(self.table[first:last])

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Read]:
        for row, key, kind, target, place in self.table.tolist():
            yield Read(row, key, ReadKind(kind), target, place)

    @property
    def row(self) -> Ints:
        return self.table[:, 0]

    @property
    def key(self) -> Ints:
        return self.table[:, 1]

    @property
    def kind(self) -> Ints:
        return self.table[:, 2]

    @property
    def target(self) -> Ints:
        return self.table[:, 3]

    @property
    def place(self) -> Ints:
        return self.table[:, 4]
