"""How much KV texts are given to decode into, and which are about to need more.

Where all that waits can decode beside what runs, a text has room for its most tokens from the start. Otherwise it has
room for what those before it became (three in five do not exceed it), and gets more when it is longer: so that more
texts decode at once than would fit at their most. What a text is given is a run of blocks where one is free.
"""

import heapq

from engine.scheduling.block_pool import BlockPool, blocks_for
from engine.scheduling.decoding import Decoding
from engine.scheduling.learnt_lengths import LearntLengths, kind_of
from engine.scheduling.live_adapters import LiveAdapters
from engine.scheduling.sequence import Sequence
from engine.scheduling.waiting import Waiting

# The part of texts that do not exceed what one is given.
LIKELY = 0.6


class DecodeRoom:
    """`Sequence.kv_room` of those that are admitted. A step's clock says when each is to be looked at."""

    def __init__(self, pool: BlockPool, adapters: LiveAdapters, decoding: Decoding, waiting: Waiting) -> None:
        self._pool = pool
        self._adapters = adapters
        self._decoding = decoding
        self._waiting = waiting
        self._lengths: dict[int, LearntLengths] = {}
        self._lacking = 0  # blocks that those which are admitted may need and have not
        self._clock = 0
        self._looks: list[tuple[int, int]] = []  # by the step before which a text may have no room: its key

    def tokens(self, sequence: Sequence) -> int:
        """KV tokens to decode into that it is given next, what it has included."""
        most, lengths = sequence.decode_kv_tokens, self._lengths.get(kind_of(sequence))
        if lengths is None or self._waiting.num_blocks + self._lacking <= self._pool.num_free:
            return most
        return min(lengths.likely(LIKELY, sequence.num_output_tokens, sequence.max_tokens), most)

    def begin(self, sequence: Sequence) -> None:
        """It is admitted, and has blocks."""
        sequence.kv_room = self._held(sequence)
        self._lacking += self._lacks(sequence)
        self.look(sequence)

    def leave(self, sequence: Sequence) -> None:
        """It is admitted no more."""
        self._lacking -= self._lacks(sequence)
        sequence.kv_room = 0

    def look(self, sequence: Sequence) -> None:
        """It may need room sooner than a token a step says."""
        if sequence.kv_room < sequence.decode_kv_tokens:
            heapq.heappush(self._looks, (self._clock + sequence.kv_left, sequence.key))

    def learn(self, ended: list[Sequence]) -> None:
        """They have ended by themselves, or at their most tokens."""
        for sequence in ended:
            kind = kind_of(sequence)
            if kind not in self._lengths:
                self._lengths[kind] = LearntLengths(kind)
            self._lengths[kind].end(len(sequence.token_ids), sequence.max_tokens)
        for kind in {kind_of(sequence) for sequence in ended}:
            self._lengths[kind].learn(self._decoding.texts)

    def full(self, sequences: dict[int, Sequence]) -> list[Sequence]:
        """Before each step: those without room for its row, in plan order."""
        self._clock += 1
        found = {}
        while self._looks and self._looks[0][0] < self._clock:
            sequence = sequences.get(heapq.heappop(self._looks)[1])
            if sequence is None or not sequence.admitted or sequence.num_output_tokens >= sequence.max_tokens:
                continue
            if sequence.kv_left < 0:
                found[sequence.key] = sequence
            else:
                self.look(sequence)
        return sorted(found.values(), key=lambda sequence: sequence.order)

    def grow(self, sequence: Sequence) -> bool:
        """Gives it more blocks, as many as are likely to do; False where there are not enough for its next row."""
        table = sequence.node.table if sequence.is_tail else sequence.table
        assert table is not None
        size = self._pool.block_size
        at_least = blocks_for(-sequence.kv_left, size)
        wanted = max(blocks_for(self.tokens(sequence) - sequence.kv_room, size), at_least)
        given = min(wanted, self._pool.num_free + self._adapters.num_idle_blocks)
        if given < at_least:
            return False
        self._adapters.enter(None, given)
        self._pool.extend(table, given)
        self._lacking -= self._lacks(sequence)
        self.begin(sequence)
        return True

    def _lacks(self, sequence: Sequence) -> int:
        """Blocks that it may need and has not."""
        return blocks_for(sequence.decode_kv_tokens - sequence.kv_room, self._pool.block_size)

    def _held(self, sequence: Sequence) -> int:
        """Tokens that there is room for in a text's blocks, or in those behind its node."""
        node = sequence.node
        room = 0 if sequence.table is None else sequence.table.num_tokens
        if sequence.is_tail:
            assert node.table is not None
            room = node.table.num_tokens - node.num_tokens
        return min(room, sequence.decode_kv_tokens)
