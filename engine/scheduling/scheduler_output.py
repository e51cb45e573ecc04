"""What one step runs, as plain data: the whole contract between the scheduler and the model runner.

A step's tokens are rows of one packed batch, sorted so that the rows below any prefix node are
contiguous: a node's KV is then read once for all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.segments import Segment, Segments


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Row whose logits give request `key` its next token."""

    row: int
    key: int


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Row whose logits give request `key` the log-probability of `targets`, each a token of label `labels[i]`."""

    row: int
    key: int
    targets: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SchedulerOutput:
    """The segments that a row is in hold each token of its context, and itself, once.

    `input_ids` below 0: -1 - i is the token that the step before sampled i-th, which is still in flight.
    `slot_mapping` says where each row's KV is kept; -1 where no later step reads it. `segments` go on to cover the
    rows of `ahead` decode steps behind this one, if no row leaves: what a row has not reached is not read.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    segments: Segments
    samples: tuple[SampleRow, ...]
    scores: tuple[ScoreRow, ...]
    num_prefill_tokens: int
    num_decode_tokens: int
    num_label_tokens: int
    ahead: int = 0

    @property
    def num_scheduled_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def asked_rows(self) -> NDArray[np.int64]:
        """Rows whose logits are read, ascending: no others need what only the last layer makes of them."""
        if len(self.samples) == len(self.input_ids):
            return np.arange(len(self.input_ids))
        rows = [sample.row for sample in self.samples] + [score.row for score in self.scores]
        return np.unique(np.array(rows, dtype=np.int64))

    def places(self, rows: list[int]) -> NDArray[np.int64]:
        """Where `rows`, which are some of the asked ones, are among them."""
        return np.searchsorted(self.asked_rows, np.array(rows, dtype=np.int64))

    @classmethod
    def causal_rows(cls, rows: int) -> "SchedulerOutput":
        """One sequence of `rows` tokens that leaves no KV and asks every row: a step for probes and warm-ups."""
        ids = np.arange(rows, dtype=np.int64)
        segments = Segments.of([Segment(0, rows, 0, rows, 0, in_step=True)])
        samples = tuple(SampleRow(row, row) for row in range(rows))
        return cls(ids, ids, np.full(rows, -1, dtype=np.int64), segments, samples, (), rows, 0, 0)
