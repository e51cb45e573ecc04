"""What one step runs, as plain data: the whole contract between the scheduler and the model runner.

A step's tokens are rows of one packed batch, sorted so that the rows below any prefix node are
contiguous: a node's KV is then read once for all of them.
"""

from dataclasses import dataclass

import numpy as np

from engine.scheduling.reads import ReadKind, Reads
from kernels.segments import Ints, Segment, Segments


@dataclass(frozen=True, slots=True, eq=False)
class AdapterLoad:
    """Weights to bring into `blocks` of the KV cache's memory before the step runs; rows know them by `number`."""

    number: int
    adapter: str
    blocks: Ints


@dataclass(frozen=True, slots=True, eq=False)
class StepAdapters:
    """`of_row` (rows,): the number of the adapter that a row runs with, -1 for none.

    Adapters of the numbers in `gone` have lost their blocks to others; `loads` come behind that.
    """

    of_row: Ints
    loads: tuple[AdapterLoad, ...] = ()
    gone: tuple[int, ...] = ()

    def for_rows(self, rows: Ints | slice, *, changes: bool = False) -> "StepAdapters":
        """Of some of the rows; without what is loaded, but where it `changes`."""
        return StepAdapters(self.of_row[rows], self.loads if changes else (), self.gone if changes else ())


@dataclass(frozen=True, slots=True, eq=False)
class SchedulerOutput:
    """The segments that a row is in hold each token of its context, and itself, once.

    `input_ids` below 0: -1 - i is the token that the step before sampled i-th, which is still in flight.
    `num_decode_tokens` are of texts that go on, the `num_draft_tokens` among them guesses: see `drafts.py`.
    `slot_mapping` says where each row's KV is kept; -1 where no later step reads it. `segments` go on to cover the
    rows of `ahead` decode steps behind this one, if no row leaves: what a row has not reached is not read. `adapters`
    is None where all rows run with the model's own weights alone and no adapter comes or goes. `num_forced_tokens` are
    rows of tokens that grammars forced and of those before them, or of texts that gave way: several of a sequence.
    """

    input_ids: Ints
    position_ids: Ints
    slot_mapping: Ints
    segments: Segments
    reads: Reads
    num_prefill_tokens: int
    num_decode_tokens: int
    num_label_tokens: int
    num_draft_tokens: int = 0
    ahead: int = 0
    num_forced_tokens: int = 0
    adapters: StepAdapters | None = None

    @property
    def num_scheduled_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def sampling(self) -> list[int]:
        """The sequences that rows are sampled for, each once: a text's drafts are sampled with it."""
        return list(dict.fromkeys(self.reads.of_kind(ReadKind.SAMPLE).key.tolist()))

    @property
    def asked_rows(self) -> Ints:
        """Rows that are read, ascending: no others need what only the last layer makes of them."""
        if self.num_decode_tokens == len(self.input_ids):
            return np.arange(len(self.input_ids))
        return np.unique(self.reads.row)

    @property
    def num_head_rows(self) -> int:
        """Rows whose logits are asked for."""
        if self.num_decode_tokens == len(self.input_ids):
            return self.num_decode_tokens
        return len(np.unique(self.reads.row[self.reads.kind != ReadKind.HIDDEN]))

    @classmethod
    def causal_rows(cls, rows: int) -> "SchedulerOutput":
        """One sequence of `rows` tokens that leaves no KV and asks every row: a step for probes and warm-ups."""
        ids = np.arange(rows, dtype=np.int64)
        segments = Segments.of([Segment(0, rows, 0, rows, 0, in_step=True)])
        nowhere = np.full(rows, -1, dtype=np.int64)
        return cls(ids, ids, nowhere, segments, Reads.samples(ids, ids), rows, 0, 0)
