"""The KV that a plan will hold at its peak: the scheduler's admission replayed on counts alone."""

import heapq

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.planning.cost import Work
from engine.planning.groups import Forest
from engine.planning.prefix_tree import Ints


def peak_kv_blocks(forest: Forest, work: Work, config: EngineConfig, num_blocks: int) -> int:
    """Most blocks in use at once, at most `num_blocks`, if every request generates all that it may.

    A step takes a token of each decoding request, then prompt and label tokens in plan order until its token budget
    is spent. A request is admitted when the blocks of its missing nodes and of its whole decode are free; a node is
    freed with the last request below it. Exact where no prompts are equal: the scheduler asks equal ones together.
    """
    assert config.max_num_batched_tokens > 0, "the step's tokens are settled before"
    replay = _Replay(forest, work, config, num_blocks)
    for place, node in enumerate(replay.node_of):
        replay.run(place, node)
    return min(replay.peak, num_blocks)


class _Replay:
    """Blocks and token budget, step by step. All lists are by node or, in execution order, by request."""

    def __init__(self, forest: Forest, work: Work, config: EngineConfig, num_blocks: int) -> None:
        node_of = forest.node_of[forest.order]
        decode_kv = np.maximum(work.decode_tokens - 1, 0)
        children = np.bincount(forest.parent[forest.parent >= 0], minlength=len(forest.parent))
        users = children + np.bincount(node_of, minlength=len(forest.parent))
        # Alone at its node, a request decodes right behind the node's tokens, so the two share a block.
        alone = users[node_of] == 1
        behind = np.zeros_like(forest.parent)
        behind[node_of[alone]] = decode_kv[alone]
        transient = _transient(forest, node_of, decode_kv, config.max_num_batched_tokens)
        node_blocks = -((forest.num_tokens + behind) // -config.block_size)
        own_blocks = -(decode_kv // -config.block_size)

        self.node_of: list[int] = node_of.tolist()
        self.parent: list[int] = forest.parent.tolist()
        self.num_tokens: list[int] = forest.num_tokens.tolist()
        self.transient: list[bool] = transient.tolist()
        self.node_blocks: list[int] = np.where(transient, 0, node_blocks).tolist()
        self.own_blocks: list[int] = np.where(alone, 0, own_blocks).tolist()
        self.users: list[int] = users.tolist()
        self.label_tokens: list[int] = work.label_tokens.tolist()
        self.steps: list[int] = np.maximum(work.decode_tokens, 1).tolist()

        self.num_blocks = num_blocks
        self.step_tokens = config.max_num_batched_tokens
        self.max_running = config.max_num_seqs if config.admission == "count" else len(node_of)
        self.running: list[tuple[int, int]] = []  # heap of (step at whose start it is gone, request)
        self.computed = 0  # nodes [0, computed) have been admitted
        self.used = self.peak = 0
        self.step, self.budget = 0, self.step_tokens

    def run(self, place: int, node: int) -> None:
        """Admits a request as soon as it fits and prefills what it misses."""
        missing = range(self.computed, node + 1)
        blocks = sum(self.node_blocks[n] for n in missing) + self.own_blocks[place]
        while self.budget <= 0 or not self._fits(blocks):
            self._next_step()
        self.computed = max(self.computed, node + 1)
        self.used += blocks
        self.peak = max(self.peak, self.used)
        for n in missing:
            self._prefill(n)
        self.budget -= self.label_tokens[place]
        heapq.heappush(self.running, (self.step + self.steps[place], place))

    def _fits(self, blocks: int) -> bool:
        fits = self.used + blocks <= self.num_blocks and len(self.running) < self.max_running
        return fits or not self.running

    def _next_step(self) -> None:
        self.step += 1
        while self.running and self.running[0][0] <= self.step:
            self._finish(heapq.heappop(self.running)[1])
        self.budget = self.step_tokens - len(self.running)

    def _finish(self, place: int) -> None:
        self.used -= self.own_blocks[place]
        node = self.node_of[place]
        while node >= 0:
            self.users[node] -= 1
            if self.users[node]:
                break
            self.used -= self.node_blocks[node]
            node = self.parent[node]

    def _prefill(self, node: int) -> None:
        left = self.num_tokens[node]
        while left > 0:
            while self.budget <= 0:
                self._next_step()
            # A transient node is never split: its KV lives for one step.
            taken = left if self.transient[node] else min(left, self.budget)
            self.budget -= taken
            left -= taken


def _transient(forest: Forest, node_of: Ints, decode_kv: Ints, step_tokens: int) -> NDArray[np.bool_]:
    """Leaves that fit one step and under which nothing is decoded: they hold no block."""
    decoded = np.zeros(len(forest.parent), dtype=np.bool_)
    decoded[node_of[decode_kv > 0]] = True
    inner = np.zeros_like(decoded)
    inner[forest.parent[forest.parent >= 0]] = True
    return ~inner & ~decoded & (forest.num_tokens <= step_tokens)
