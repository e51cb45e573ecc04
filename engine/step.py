"""Turns a step's choice of work into packed rows: sorted by prefix node, with the KV that each row reads."""

from dataclasses import dataclass, field

import numpy as np

from engine.scheduler_output import KVSegment, KVWrite, LabelRows, SampleRow, SchedulerOutput, ScoreRow
from engine.sequence import NodeKey, NodeState, Sequence


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens `[first, last)` of a node; `asked` want the logits of its last row."""

    node: NodeState
    first: int
    last: int
    asked: list[Sequence] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Step:
    """What the scheduler chose. `asked_again` sequences need the logits of a prompt whose KV exists."""

    decodes: list[Sequence]
    chunks: list[Chunk] = field(default_factory=list)
    asked_again: list[Sequence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks or self.asked_again)


class _Builder:
    """Lays items down row by row, in depth-first order, and closes each node's segment behind its last row."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.writes: list[KVWrite] = []
        self.causal: list[tuple[int, int]] = []
        self.labels: list[LabelRows] = []
        self.own: list[KVSegment] = []
        self.context: list[KVSegment] = []
        self.samples: list[SampleRow] = []
        self.scores: list[ScoreRow] = []
        self.num_label_tokens = 0
        self._open: list[tuple[NodeState, int]] = []
        self._step_rows: dict[NodeState, tuple[int, int]] = {}

    @property
    def row(self) -> int:
        return len(self.tokens)

    def below(self, chain: tuple[NodeState, ...]) -> None:
        """The rows to come attend to `chain`: closes the nodes that are not in it, opens those that are new."""
        shared = 0
        while shared < min(len(chain), len(self._open)) and self._open[shared][0] is chain[shared]:
            shared += 1
        while len(self._open) > shared:
            self._close(*self._open.pop())
        self._open += [(node, self.row) for node in chain[shared:]]

    def _close(self, node: NodeState, row_start: int) -> None:
        if row_start == self.row:
            return
        if node.transient:
            self.context.append(KVSegment(row_start, self.row, *self._step_rows[node], node.start, in_step=True))
            return
        assert node.table is not None
        self.context += _segments(row_start, self.row, node.table.slots(0, node.num_tokens), node.start)

    def chunk(self, chunk: Chunk) -> None:
        node, start = chunk.node, self.row
        self.below(node.chain[:-1])
        self.tokens += node.token_ids[chunk.first : chunk.last].tolist()
        self.positions += range(node.start + chunk.first, node.start + chunk.last)
        self.causal.append((start, self.row))
        if node.transient:
            self._step_rows[node] = (start, self.row)
        else:
            assert node.table is not None
            row = start
            for first, last in node.table.slots(chunk.first, chunk.last):
                self.writes.append(KVWrite(row, row + last - first, first))
                row += last - first
            self.context += _segments(start, self.row, node.table.slots(0, chunk.first), node.start)
        for sequence in chunk.asked:
            self.ask(sequence, self.row - 1)
        for sequence in chunk.asked:
            self.label_rows(sequence)

    def ask(self, sequence: Sequence, row: int) -> None:
        """The logits of `row`, the last of the prompt."""
        if sequence.label_tree is None:
            self.samples.append(SampleRow(row, sequence.key))
        else:
            self.score(sequence, row, -1)

    def score(self, sequence: Sequence, row: int, parent: int) -> None:
        assert sequence.label_tree is not None
        targets = [(label, token) for label, above, token in sequence.label_tree.targets if above == parent]
        labels, tokens = zip(*targets, strict=True)
        self.scores.append(ScoreRow(row, sequence.key, tokens, labels))

    def label_rows(self, sequence: Sequence) -> None:
        tree = sequence.label_tree
        if tree is None or not tree.token_ids:
            return
        self.below(sequence.node.chain)
        start = self.row
        self.tokens += tree.token_ids
        self.positions += [sequence.num_prompt_tokens + depth for depth in tree.depths]
        self.labels.append(LabelRows(start, tree.parents))
        self.num_label_tokens += len(tree.token_ids)
        for index in range(len(tree.token_ids)):
            self.score(sequence, start + index, index)

    def ask_again(self, sequence: Sequence) -> None:
        """The prompt's last token once more, over KV that holds it already."""
        node = sequence.node
        assert node.table is not None
        self.below(node.chain[:-1])
        self.tokens.append(int(node.token_ids[-1]))
        self.positions.append(node.start + node.num_tokens - 1)
        self._own_row(node.table.slots(0, node.num_tokens), node.start)
        self.ask(sequence, self.row - 1)
        self.label_rows(sequence)

    def decode(self, sequence: Sequence) -> None:
        node, count = sequence.node, len(sequence.token_ids)
        if sequence.is_tail:
            assert node.table is not None
            self.below(node.chain[:-1])
            slots, position = node.table.slots(0, node.num_tokens + count), node.start
        else:
            assert sequence.table is not None
            self.below(node.chain)
            slots, position = sequence.table.slots(0, count), sequence.num_prompt_tokens
        self.writes.append(KVWrite(self.row, self.row + 1, slots[-1][1] - 1))
        self.tokens.append(sequence.token_ids[-1])
        self.positions.append(sequence.num_prompt_tokens + count - 1)
        self._own_row(slots, position)
        self.samples.append(SampleRow(self.row - 1, sequence.key))

    def _own_row(self, slots: list[tuple[int, int]], position: int) -> None:
        """The row just laid reads `slots`: the run that ends with its own KV, and as context any run before it."""
        *rest, own = _segments(self.row - 1, self.row, slots, position)
        self.own.append(own)
        self.context += rest


def _segments(row_start: int, row_end: int, slots: list[tuple[int, int]], position: int) -> list[KVSegment]:
    """One segment a run of slots; the first holds the token at `position`."""
    segments = []
    for first, last in slots:
        segments.append(KVSegment(row_start, row_end, first, last, position))
        position += last - first
    return segments


def build_output(step: Step) -> SchedulerOutput:
    builder = _Builder()
    items: list[tuple[NodeKey, int, Chunk | Sequence]] = []
    items += [(chunk.node.key, 0, chunk) for chunk in step.chunks]
    items += [(sequence.node.key, 1, sequence) for sequence in step.asked_again]
    items += [(sequence.node.key, 2, sequence) for sequence in step.decodes]
    items.sort(key=lambda item: item[:2])
    for _, kind, item in items:
        if isinstance(item, Chunk):
            builder.chunk(item)
        elif kind == 1:
            builder.ask_again(item)
        else:
            builder.decode(item)
    builder.below(())
    return SchedulerOutput(
        input_ids=np.array(builder.tokens, dtype=np.int64),
        position_ids=np.array(builder.positions, dtype=np.int64),
        writes=tuple(builder.writes),
        causal=tuple(builder.causal),
        labels=tuple(builder.labels),
        own=tuple(builder.own),
        context=tuple(builder.context),
        samples=tuple(builder.samples),
        scores=tuple(builder.scores),
        num_prefill_tokens=sum(chunk.last - chunk.first for chunk in step.chunks) + len(step.asked_again),
        num_decode_tokens=len(step.decodes),
        num_label_tokens=builder.num_label_tokens,
    )
