"""Turns a step's choice of work into packed rows: sorted by prefix node, with the KV that each row reads."""

from dataclasses import dataclass, field

import numpy as np

from engine.scheduling.scheduler_output import SampleRow, SchedulerOutput, ScoreRow
from engine.scheduling.sequence import NodeKey, NodeState, Sequence
from kernels.segments import Segment, Segments


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
    """Lays items down row by row, in depth-first order, and closes each node's segments behind its last row."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.segments: list[Segment] = []
        self.samples: list[SampleRow] = []
        self.scores: list[ScoreRow] = []
        self.num_label_tokens = 0
        self._open: list[tuple[NodeState, int]] = []

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
        """A transient node is this step's own rows, the first of which opened it."""
        if row_start == self.row:
            return
        if node.transient:
            row_end = row_start + node.num_tokens
            self.segments.append(Segment(row_start, self.row, row_start, row_end, node.start, in_step=True))
            return
        assert node.table is not None
        self._reads(row_start, node.table.slots(0, node.computed), node.start)

    def _reads(self, row_start: int, slots: list[tuple[int, int]], position: int) -> None:
        """Rows from `row_start` on read `slots`, a segment a run; the first holds the token at `position`."""
        for first, last in slots:
            self.segments.append(Segment(row_start, self.row, first, last, position))
            position += last - first

    def chunk(self, chunk: Chunk) -> None:
        node = chunk.node
        self.below(node.chain)
        self.tokens += node.token_ids[chunk.first : chunk.last].tolist()
        self.positions += range(node.start + chunk.first, node.start + chunk.last)
        if node.transient:
            self.slots += [-1] * (chunk.last - chunk.first)
        else:
            assert node.table is not None
            for first, last in node.table.slots(chunk.first, chunk.last):
                self.slots += range(first, last)
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
        """Each label token reads the prompt, and its ancestors and itself in as few runs as they lie in."""
        tree = sequence.label_tree
        if tree is None or not tree.token_ids:
            return
        self.below(sequence.node.chain)
        start, position = self.row, sequence.num_prompt_tokens
        self.tokens += tree.token_ids
        self.positions += [position + depth for depth in tree.depths]
        self.slots += [-1] * len(tree.token_ids)
        self.num_label_tokens += len(tree.token_ids)
        for index in range(len(tree.token_ids)):
            row = start + index
            last = index
            while last >= 0:
                first = last
                while tree.parents[first] == first - 1 and first > 0:
                    first -= 1
                at = position + tree.depths[first]
                self.segments.append(Segment(row, row + 1, start + first, start + last + 1, at, in_step=True))
                last = tree.parents[first]
            self.score(sequence, row, index)

    def ask_again(self, sequence: Sequence) -> None:
        """The prompt's last token once more, over KV that holds it already."""
        node = sequence.node
        self.below(node.chain)
        self.tokens.append(int(node.token_ids[-1]))
        self.positions.append(node.start + node.num_tokens - 1)
        self.slots.append(-1)
        self.ask(sequence, self.row - 1)
        self.label_rows(sequence)

    def decode(self, sequence: Sequence) -> None:
        node, count = sequence.node, sequence.num_output_tokens
        if sequence.is_tail:
            assert node.table is not None
            self.below(node.chain[:-1])
            slots, position = node.table.slots(0, node.num_tokens + count), node.start
        else:
            assert sequence.table is not None
            self.below(node.chain)
            slots, position = sequence.table.slots(0, count), sequence.num_prompt_tokens
        self.tokens.append(sequence.last_token)
        self.positions.append(sequence.num_prompt_tokens + count - 1)
        self.slots.append(slots[-1][1] - 1)
        self._reads(self.row - 1, slots, position)
        self.samples.append(SampleRow(self.row - 1, sequence.key))


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
        slot_mapping=np.array(builder.slots, dtype=np.int64),
        segments=Segments.of(builder.segments),
        samples=tuple(builder.samples),
        scores=tuple(builder.scores),
        num_prefill_tokens=sum(chunk.last - chunk.first for chunk in step.chunks) + len(step.asked_again),
        num_decode_tokens=len(step.decodes),
        num_label_tokens=builder.num_label_tokens,
    )
