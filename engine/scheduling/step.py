"""Turns a step's choice of work into packed rows: sorted by prefix node, with the KV that each row reads.

Three prompts on a trie of two levels, all computed in one step. Rows lie in depth-first order, so that what is below a
node are neighbours, and the node's keys are one segment over all of them: read once, for its own rows as for theirs. A
row sees what is not behind it in its prompt, so that one rule makes the triangles and the rectangles.

    a b c - d e     "abcde"           row      0   1   2   3   4   5   6   7
          - f       "abcf"            token    a   b   c   d   e   f   g   h
          - g h     "abcgh"           position 0   1   2   3   4   3   3   4

    segment of "abc"    rows 0-8      keys a   #   #   #   #   #   #   #   #
                                           b       #   #   #   #   #   #   #
                                           c           #   #   #   #   #   #
    segment of "de"     rows 3-5           d               #   #
                                           e                   #
    segment of "f"      rows 5-6           f                       #
    segment of "gh"     rows 6-8           g                           #   #
                                           h                               #

    reads: the next token of the prompt that ends there                        *   *       *

Keys are slots of the cache; those of a leaf that nothing reads later are rows of this very step. A sequence that
decodes is one row, with a segment of its own for what it has generated, below its node's. Label tokens are rows that
keep nothing, each with segments for its ancestors among them. Tokens that a grammar forces behind a text's last one are
rows beside that one's, below each other in the sequence's own segment as a prompt's are in its node's; so are drafts.
"""

from dataclasses import dataclass, field

import numpy as np

from engine.label_tree import LabelTree
from engine.scheduling.hidden_reads import HiddenReads
from engine.scheduling.live_adapters import LiveAdapters
from engine.scheduling.reads import Read, ReadKind, Reads
from engine.scheduling.scheduler_output import SchedulerOutput, StepAdapters
from engine.scheduling.sequence import NodeKey, NodeState, Sequence
from kernels.segments import Ints, Segment, Segments


@dataclass(slots=True, eq=False)
class Chunk:
    """Rows for tokens `[first, last)` of a node. The sequences of `asked` end at the node and read its last row.

    `targets` are tokens whose log-probabilities are read off the rows, by node: each one's row is that of the token
    before it, so that they are the node's own, and first tokens of nodes below. `hidden` are tokens whose hidden states
    are read off their own rows. `again`: the tokens' KV exists, and the rows are computed once more for what is read.
    """

    node: NodeState
    first: int
    last: int
    asked: list[Sequence] = field(default_factory=list)
    targets: list[tuple[NodeState, Ints]] = field(default_factory=list)
    hidden: list[tuple[HiddenReads, Ints]] = field(default_factory=list)
    again: bool = False


@dataclass(slots=True, eq=False)
class ForcedChunk:
    """Rows for the first `num_rows` tokens that a text has no row for yet. The last of them all is read."""

    sequence: Sequence
    num_rows: int

    @property
    def node(self) -> NodeState:
        return self.sequence.node


@dataclass(slots=True, eq=False)
class Step:
    """What the scheduler chose: a token of each of `decodes` and, by key, drafts behind it; several tokens of each of
    `forced`; and chunks of prompts.
    """

    decodes: list[Sequence]
    chunks: list[Chunk] = field(default_factory=list)
    forced: list[ForcedChunk] = field(default_factory=list)
    drafts: dict[int, list[int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.decodes or self.forced or self.chunks)


class _Builder:
    """Lays items down row by row, in depth-first order, and closes each node's segments behind its last row."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.segments: list[Segment] = []
        self.reads: list[Read] = []
        self.prompt_reads: list[Reads] = []
        self.adapters: list[tuple[str | None, int]] = []  # of rows that lie together, and how many they are
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
        self._read_slots(row_start, node.table.slots(0, node.computed), node.start)

    def _read_slots(self, row_start: int, slots: list[tuple[int, int]], position: int) -> None:
        """Rows from `row_start` on read `slots`, a segment a run; the first holds the token at `position`."""
        for first, last in slots:
            self.segments.append(Segment(row_start, self.row, first, last, position))
            position += last - first

    def chunk(self, chunk: Chunk) -> None:
        node = chunk.node
        self.below(node.chain)
        self.tokens += node.token_ids[chunk.first : chunk.last].tolist()
        self.positions += range(node.start + chunk.first, node.start + chunk.last)
        if node.transient or chunk.again:
            self.slots += [-1] * (chunk.last - chunk.first)
        else:
            assert node.table is not None
            for first, last in node.table.slots(chunk.first, chunk.last):
                self.slots += range(first, last)
        last_row = self.row - 1
        for owner, tokens in chunk.targets:
            assert owner.reads is not None
            rows = last_row - (node.start + chunk.last) + owner.start + tokens
            self.prompt_reads.append(Reads.prompt(rows, owner.reads.key, owner.token_ids[tokens], tokens))
        for reads, tokens in chunk.hidden:
            rows = last_row + 1 - chunk.last + tokens
            self.prompt_reads.append(Reads.hidden(rows, reads.key, reads.weights(tokens)))
        for sequence in chunk.asked:
            if sequence.label_tree is None:
                self.reads.append(Read(last_row, sequence.key))
            else:
                self.label_rows(sequence, sequence.label_tree, last_row)

    def label_rows(self, sequence: Sequence, tree: LabelTree, prompt_row: int) -> None:
        """Each label token reads the prompt, and its ancestors and itself in as few runs as they lie in."""
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
        for label, parent, token in tree.targets:
            row = start + parent if parent >= 0 else prompt_row
            self.reads.append(Read(row, sequence.key, ReadKind.LABEL, token, label))

    def decode(self, sequence: Sequence, drafts: list[int]) -> None:
        """The text's last token, off which the next is read, and its drafts, off which more are if those are right."""
        first = self.row
        self._text_rows(sequence, sequence.num_output_tokens + len(drafts), [sequence.last_token, *drafts])
        self.reads += [Read(row, sequence.key) for row in range(first, self.row)]

    def forced(self, chunk: ForcedChunk) -> None:
        """The rows of a chunk see each other as those of a prompt do."""
        sequence = chunk.sequence
        first = sequence.num_output_tokens - sequence.num_uncomputed
        count = first + chunk.num_rows
        self._text_rows(sequence, count, sequence.token_ids[first:count])
        if count == sequence.num_output_tokens:
            self.reads.append(Read(self.row - 1, sequence.key))

    def _text_rows(self, sequence: Sequence, count: int, tokens: list[int]) -> None:
        """Rows of `tokens`, behind which a text's first `count` tokens have their KV."""
        node = sequence.node
        if sequence.is_tail:
            assert node.table is not None
            self.below(node.chain[:-1])
            slots, position = node.table.slots(0, node.num_tokens + count), node.start
        else:
            assert sequence.table is not None
            self.below(node.chain)
            slots, position = sequence.table.slots(0, count), sequence.num_prompt_tokens
        start = self.row
        self.tokens += tokens
        self.positions += range(sequence.num_prompt_tokens + count - len(tokens), sequence.num_prompt_tokens + count)
        if len(tokens) == 1:
            self.slots.append(slots[-1][1] - 1)
        else:
            self.slots += [slot for first, last in slots for slot in range(first, last)][-len(tokens) :]
        self._read_slots(start, slots, position)


def build_output(step: Step, adapters: LiveAdapters | None = None) -> SchedulerOutput:
    """The step's rows; what `adapters` bring in for it is in this step, and in no other. None: no row has one."""
    builder = _Builder()
    # A node's rows by position, and those that decode behind it last.
    items: list[tuple[NodeKey, bool, int, Chunk | Sequence | ForcedChunk]] = []
    items += [(chunk.node.key, False, chunk.first, chunk) for chunk in step.chunks]
    items += [(sequence.node.key, True, 0, sequence) for sequence in step.decodes]
    items += [(chunk.node.key, True, 0, chunk) for chunk in step.forced]
    items.sort(key=lambda item: item[:3])
    for *_, item in items:
        before = builder.row
        if isinstance(item, Chunk):
            builder.chunk(item)
        elif isinstance(item, ForcedChunk):
            builder.forced(item)
        else:
            builder.decode(item, step.drafts.get(item.key, []))
        builder.adapters.append((item.node.adapter, builder.row - before))
    builder.below(())
    num_drafts = sum(map(len, step.drafts.values()))
    return SchedulerOutput(
        input_ids=np.array(builder.tokens, dtype=np.int64),
        position_ids=np.array(builder.positions, dtype=np.int64),
        slot_mapping=np.array(builder.slots, dtype=np.int64),
        segments=Segments.of(builder.segments),
        reads=Reads.of(builder.reads, *builder.prompt_reads),
        num_prefill_tokens=sum(chunk.last - chunk.first for chunk in step.chunks),
        num_decode_tokens=len(step.decodes) + num_drafts,
        num_label_tokens=builder.num_label_tokens,
        num_draft_tokens=num_drafts,
        num_forced_tokens=sum(chunk.num_rows for chunk in step.forced),
        adapters=None if adapters is None else _adapters(builder.adapters, adapters),
    )


def _adapters(found: list[tuple[str | None, int]], adapters: LiveAdapters) -> StepAdapters | None:
    loads, gone = adapters.take_changes()
    if not loads and not gone and all(adapter is None for adapter, _ in found):
        return None
    of_item = [-1 if adapter is None else adapters.numbers[adapter] for adapter, _ in found]
    of_row = np.repeat(np.array(of_item, dtype=np.int64), [count for _, count in found])
    return StepAdapters(of_row, loads, gone)
