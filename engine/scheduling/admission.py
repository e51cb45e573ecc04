"""The rule of admission on counts: the KV that a request needs, when it may begin, and what a step prefills.

The scheduler asks about a node or a sequence that is live, the simulator of `engine.planning` about all of a plan's at
once: so counts are numbers or arrays.
"""

from dataclasses import dataclass

import numpy as np

from engine.config import EngineConfig
from engine.scheduling.block_pool import Counts, blocks_for


def decode_kv_tokens(max_tokens: Counts) -> Counts:
    """KV tokens that decoding needs at most: the last generated token's KV is never read."""
    return max_tokens - (max_tokens > 0)


@dataclass(frozen=True, slots=True)
class AdmissionRule:
    """A request is admitted, in plan order, when the blocks of its missing nodes and of its decode are free.

    What it decodes is all that it may, or what it is likely to (`engine.scheduling.decode_room`).
    `max_admitted` bounds the requests that are admitted and unfinished.
    """

    num_blocks: int
    block_size: int
    step_tokens: int
    max_admitted: int

    @classmethod
    def of(cls, config: EngineConfig, num_blocks: int) -> "AdmissionRule":
        """`max_num_seqs` bounds admission by count alone; admission by memory has no bound but the blocks."""
        assert config.max_num_batched_tokens > 0, "the step's tokens are settled before"
        by_count = config.admission == "count"
        return cls(
            num_blocks=num_blocks,
            block_size=config.block_size,
            step_tokens=config.max_num_batched_tokens,
            max_admitted=config.max_num_seqs if by_count else np.iinfo(np.int64).max,
        )

    def transient(self, is_leaf: Counts, num_tokens: Counts, decode_kv: Counts) -> Counts:
        """1 for a node whose KV no later step reads, else 0: a leaf that fits one step and decodes nothing.

        `decode_kv` is summed over the requests that end at the node.
        """
        held: Counts = is_leaf * (decode_kv == 0) * (num_tokens <= self.step_tokens)
        return held

    def tail_tokens(self, is_alone: Counts, decode_kv: Counts) -> Counts:
        """Decode KV that lies right behind the node's tokens, so that one read covers both.

        `is_alone`: no other request ends at the node or below it, so both are freed together.
        """
        return is_alone * decode_kv

    def node_blocks(self, num_tokens: Counts, tail_tokens: Counts, transient: Counts) -> Counts:
        """Blocks of a node and of the tail behind it; none of a transient one."""
        return blocks_for(num_tokens + tail_tokens, self.block_size) * (1 - transient)

    def own_blocks(self, decode_kv: Counts, tail_tokens: Counts) -> Counts:
        """Blocks of a request's decode KV where it is no tail of its node."""
        return blocks_for(decode_kv - tail_tokens, self.block_size)

    def admits(self, blocks: int, num_used: int, num_admitted: int) -> bool:
        """Whether the next request may begin, which needs so many blocks more."""
        return num_used + blocks <= self.num_blocks and num_admitted < self.max_admitted

    def chunk_tokens(self, num_left: int, budget: int, transient: int) -> int:
        """Tokens of a node that a step prefills; a transient node, whose KV lives for one step, is never split."""
        return num_left if transient else min(num_left, budget)
