"""The nodes that are computed next, and which of their rows a step takes."""

from collections import deque

import numpy as np

from engine.scheduling.admission import AdmissionRule
from engine.scheduling.decoding import Decoding
from engine.scheduling.sequence import NodeState, Sequence
from engine.scheduling.step import Chunk, Step


class Prefilling:
    """Admitted nodes that have rows to compute, or to read, for the sequence that was admitted last; in order."""

    def __init__(self, rule: AdmissionRule, decoding: Decoding) -> None:
        """Texts that waited for their node to be computed again join those that are `decoding`."""
        self._rule = rule
        self._decoding = decoding
        self._nodes: deque[NodeState] = deque()
        self._payer: Sequence

    def __len__(self) -> int:
        return len(self._nodes)

    def begin(self, sequence: Sequence) -> None:
        """What follows is computed for the sequence: first rows of nodes above it that are there and unread."""
        assert not self._nodes, len(self._nodes)
        self._payer = sequence
        self._nodes += [node for node in sequence.node.chain if node.admitted and len(node.unread_rows())]

    def join(self, node: NodeState) -> None:
        """A node of the sequence's is the last, if it is not among them."""
        if node not in self._nodes:
            self._nodes.append(node)

    def forget_unused(self) -> None:
        """Nodes that nobody is below any more are not computed, nor those whose KV is gone."""
        self._nodes = deque(node for node in self._nodes if node.users and node.admitted)

    def take(self, step: Step, budget: int) -> int:
        """Schedules the first node's next chunk; returns the tokens it took."""
        node = self._nodes[0]
        chunk = self._next_chunk(node, budget)
        chunk.targets = node.read_rows(chunk.first, chunk.last)
        chunk.hidden = node.read_hidden(chunk.first, chunk.last)
        step.chunks.append(chunk)
        taken = chunk.last - chunk.first
        if chunk.again:
            self._payer.num_cached_tokens = max(self._payer.num_cached_tokens - taken, 0)
        if not node.complete or len(node.unread_rows()):
            return taken
        asked = [sequence for sequence in node.ends if not sequence.asked and sequence.reads_scheduled]
        if asked and chunk.last < node.num_tokens:
            return taken  # the last row comes next
        self._nodes.popleft()
        return taken + self._ask(chunk, asked)

    def _next_chunk(self, node: NodeState, budget: int) -> Chunk:
        """Rows of the node for a step: those that are there but unread first, then new ones.

        Where there is neither, the last row once more, for sequences that end at it.
        """
        unread = node.unread_rows()
        assert not (node.complete and node.transient), "the rows of a transient node are computed once"
        if len(unread):
            gaps = np.flatnonzero(np.diff(unread) != 1)
            first, end = int(unread[0]), int(unread[gaps[0] if len(gaps) else -1]) + 1
            return Chunk(node, first, min(end, first + budget), again=True)
        if node.complete:
            return Chunk(node, node.num_tokens - 1, node.num_tokens, again=True)
        first = node.computed
        node.computed += self._rule.chunk_tokens(node.num_tokens - first, budget, node.transient)
        return Chunk(node, first, node.computed)

    def _ask(self, chunk: Chunk, asked: list[Sequence]) -> int:
        """The sequences read the chunk's last row, and those that decoded before go on; returns label tokens."""
        for sequence in asked:
            sequence.asked = True
            if not sequence.admitted:
                sequence.num_cached_tokens = sequence.num_prompt_tokens
        for sequence in chunk.node.ends:
            if sequence.admitted and 0 < sequence.num_output_tokens < sequence.max_tokens:
                self._decoding.join(sequence)
        chunk.asked = asked
        return sum(len(sequence.label_tree.token_ids) for sequence in asked if sequence.label_tree is not None)
