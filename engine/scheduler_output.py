"""What one step runs, as plain data: the whole contract between the scheduler and the model runner.

A step's tokens are rows of one packed batch, sorted so that the rows below any prefix node are
contiguous: a node's KV is then read once for all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class KVWrite:
    """Rows `[row_start, row_end)` leave their KV in the slots from `slot_start` on."""

    row_start: int
    row_end: int
    slot_start: int


@dataclass(frozen=True, slots=True)
class KVSegment:
    """Rows `[row_start, row_end)` attend to all KV of `[kv_start, kv_end)`, as far as a layer's window reaches.

    These are slots of the cache, or rows of this very step if `in_step`. `position` is the first one's place in its
    prompt; the others follow it one by one.
    """

    row_start: int
    row_end: int
    kv_start: int
    kv_end: int
    position: int
    in_step: bool = False


@dataclass(frozen=True, slots=True)
class LabelRows:
    """Label tokens from row `row_start` on: each attends to itself and to its ancestors (`parents`, -1: none)."""

    row_start: int
    parents: tuple[int, ...]


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
    """Every row has exactly one *own* part (`causal`, `labels` or `own`); `context` parts are merged into it."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    writes: tuple[KVWrite, ...]
    causal: tuple[tuple[int, int], ...]
    labels: tuple[LabelRows, ...]
    own: tuple[KVSegment, ...]
    context: tuple[KVSegment, ...]
    samples: tuple[SampleRow, ...]
    scores: tuple[ScoreRow, ...]
    num_prefill_tokens: int
    num_decode_tokens: int
    num_label_tokens: int

    @property
    def num_scheduled_tokens(self) -> int:
        return len(self.input_ids)

    @classmethod
    def causal_rows(cls, rows: int) -> "SchedulerOutput":
        """One sequence of `rows` tokens that leaves no KV: a step for probes and warm-ups."""
        ids = np.arange(rows, dtype=np.int64)
        return cls(ids, ids, (), ((0, rows),), (), (), (), (), (), rows, 0, 0)
