"""Memory-centric scheduling over prefix nodes (BatchLLM, arXiv 2412.03594, section 4).

Prefill is the nodes' work, decode the sequences'. A request is admitted when all the KV that it can need at its
peak is free, so nothing is preempted and nothing is computed twice; it waits otherwise. Nodes are freed when the
last request below them ends. Every step takes one token of each running sequence and fills the rest of the token
budget with prefill chunks in plan order.

A step may be scheduled while the one before it still runs: the tokens that it samples are then pending, and are taken
in by `update` one step late. A text whose length ends it takes no further step; one that a token ends takes one row
more, which nobody reads.
"""

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.label_tree import build_label_tree
from engine.plan import PrefixNode, ShardWork
from engine.request import TokenIds
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.decode_rows import DecodeRows
from engine.scheduling.reads import ReadKind
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import NodeState, Sequence
from engine.scheduling.step import Chunk, Step, build_output


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for a sequence, and whether that ends it."""

    token_id: int
    finished: bool


class Scheduler:
    """Holds every submitted request from `add` until `update` returns it as finished, each once."""

    def __init__(self, config: EngineConfig, pool: BlockPool, max_model_len: int, *, decode_ahead: int = 0) -> None:
        """Steps that only decode follow from the one before, their segments covering `decode_ahead` more, if not 0."""
        assert config.max_num_batched_tokens > 0, "the step's tokens are settled before"
        self.config = config
        self.pool = pool
        self.max_model_len = max_model_len
        self.sequences: dict[int, Sequence] = {}
        self.evictions = 0
        self._nodes: dict[tuple[int, int], NodeState] = {}
        self._plans: dict[str, int] = {}
        self._waiting: list[tuple[tuple[int, int, int], int]] = []
        self._prefilling: deque[NodeState] = deque()
        self._running: dict[int, Sequence] = {}
        self._in_flight: deque[list[Sequence]] = deque()  # of each step, the scored sequences, which end with it
        self._decodes: DecodeRows | None = None
        self._decode_ahead = decode_ahead
        self._next_key = 0

    def has_work(self) -> bool:
        return bool(self.sequences)

    def add(self, work: ShardWork) -> list[Sequence]:
        """Queues a shard in plan order; returns its sequences in the order of `work.requests`.

        A sequence that could not run even alone comes back `finished` at once, with nothing computed.
        """
        plan = self._plans.setdefault(work.plan_id, len(self._plans))
        planned = {node.node_id: node for node in work.nodes}
        added = []
        for place, (request, node_id) in enumerate(zip(work.requests, work.node_of, strict=True)):
            node = self._node(plan, planned, node_id, request.prompt_token_ids)
            sequence = Sequence(
                key=self._next_key,
                order=(plan, work.index, place),
                request=request,
                node=node,
                max_tokens=max(min(request.max_tokens, self.max_model_len - node.start - node.num_tokens), 0),
                label_tree=build_label_tree(request.labels) if request.labels is not None else None,
            )
            self._next_key += 1
            added.append(sequence)
            node.ends.append(sequence)
            for above in node.chain:
                above.users += 1
                if above.table is not None:
                    self.pool.acquire(above.table)
            self.sequences[sequence.key] = sequence
            heapq.heappush(self._waiting, (sequence.order, sequence.key))
        for sequence in added:
            if not self._could_run(sequence):
                self._finish(sequence)
        return added

    def schedule(self) -> SchedulerOutput | None:
        """The next step. There is always one while there is work and no step in flight."""
        step = Step(decodes=list(self._running.values()))
        budget = self.config.max_num_batched_tokens - len(step.decodes)
        while budget > 0 and (self._prefilling or self._admit_next(step)):
            if self._prefilling:
                budget -= self._prefill(step, budget)
        if not step and self._in_flight:
            return None
        if not step and self._evict_for_next():
            return self.schedule()
        assert step, (len(self.sequences), len(self._waiting), self.pool.num_free)
        output = self._output(step)
        self._expect(step, output)
        return output

    def update(self, output: SchedulerOutput, sampled: Mapping[int, Sampled]) -> list[Sequence]:
        """Takes in the oldest step in flight; returns the sequences that it finished. Scored ones always are.

        `sampled` has a token for each sequence that the step samples for and that is still in `sequences`.
        """
        finished = self._in_flight.popleft()
        for key in output.reads.of_kind(ReadKind.SAMPLE).key.tolist():
            sequence = self.sequences.get(key)
            if sequence is None:
                continue  # it ended while this step ran
            sequence.num_pending -= 1
            sequence.token_ids.append(sampled[key].token_id)
            if sampled[key].finished:
                finished.append(sequence)
        for sequence in finished:
            self._finish(sequence)
        return finished

    def _output(self, step: Step) -> SchedulerOutput:
        """The step as packed rows; one that only decodes is made from the one before where it follows from it."""
        if step.chunks or not self._decode_ahead:
            self._decodes = None
            return build_output(step)
        output = self._decodes.next(self._running) if self._decodes is not None else None
        if output is None:
            self._decodes = DecodeRows(build_output(step), self._running, self._decode_ahead)
            output = self._decodes.output
        return output

    def _expect(self, step: Step, output: SchedulerOutput) -> None:
        """The step's tokens are pending; a text decodes on unless it is as long as it may become."""
        asked = [sequence for chunk in step.chunks for sequence in chunk.asked]
        self._in_flight.append([sequence for sequence in asked if sequence.label_tree is not None])
        for index, key in enumerate(output.reads.of_kind(ReadKind.SAMPLE).key.tolist()):
            sequence = self.sequences[key]
            sequence.num_pending += 1
            sequence.sample_index = index
            if sequence.num_output_tokens >= sequence.max_tokens:
                self._running.pop(sequence.key, None)
            elif sequence.admitted:
                self._running[sequence.key] = sequence

    def check_integrity(self) -> None:
        """Our own invariant after a drain: nothing is held, every block is free."""
        left = len(self.sequences), len(self._nodes), len(self._running), len(self._prefilling), len(self._in_flight)
        assert not any(left), left
        assert self.pool.num_free == self.pool.num_blocks, (self.pool.num_free, self.pool.num_blocks)

    # -- nodes

    def _node(self, plan: int, planned: Mapping[int, PrefixNode], node_id: int, prompt: TokenIds) -> NodeState:
        """The live node, made with its missing ancestors (top down, without recursion) where there is none."""
        missing = []
        while node_id != -1 and (plan, node_id) not in self._nodes:
            missing.append(planned[node_id])
            node_id = planned[node_id].parent
        state = self._nodes[plan, node_id] if node_id != -1 else None
        for node in reversed(missing):
            state = NodeState((plan, node.node_id), state, node.start, prompt[node.start : node.end], node.num_requests)
            self._nodes[state.key] = state
        assert state is not None
        return state

    def _finish(self, sequence: Sequence) -> None:
        sequence.finished = True
        del self.sequences[sequence.key]
        self._running.pop(sequence.key, None)
        if sequence.table is not None:
            self.pool.release(sequence.table)
            sequence.table = None
        for node in sequence.node.chain:
            node.users -= 1
            if node.table is not None:
                self.pool.release(node.table)
            if node.users == 0:
                del self._nodes[node.key]
        sequence.node.ends.remove(sequence)

    # -- admission

    def _could_run(self, sequence: Sequence) -> bool:
        """Whether the sequence fits the context and, alone, the cache."""
        tree = sequence.label_tree
        longest = sequence.num_prompt_tokens + (max(tree.depths, default=-1) + 1 if tree is not None else 1)
        if longest > self.max_model_len:
            return False
        held = [node.num_tokens for node in sequence.node.chain if not self._is_transient(node)]
        blocks = sum(map(self.pool.blocks_for, [*held, sequence.decode_kv_tokens]))
        return blocks <= self.pool.num_blocks

    def _is_transient(self, node: NodeState) -> bool:
        """A leaf that asks for no decode and fits one step: no later step reads its KV."""
        return (
            node.num_requests == len(node.ends)
            and node.num_tokens <= self.config.max_num_batched_tokens
            and not any(sequence.decode_kv_tokens for sequence in node.ends)
        )

    def _takes_tail(self, node: NodeState, sequence: Sequence) -> bool:
        """Whether the sequence's decode KV goes right behind the node's own tokens, so that one read covers both."""
        return node is sequence.node and node.num_requests == 1 and sequence.decode_kv_tokens > 0

    def _node_blocks(self, node: NodeState, sequence: Sequence) -> int:
        if self._is_transient(node):
            return 0
        tail = sequence.decode_kv_tokens if self._takes_tail(node, sequence) else 0
        return self.pool.blocks_for(node.num_tokens + tail)

    def _own_blocks(self, sequence: Sequence) -> int:
        """Blocks for decode KV that cannot go behind the node's own."""
        if self._takes_tail(sequence.node, sequence):
            return 0
        return self.pool.blocks_for(sequence.decode_kv_tokens)

    def _head(self) -> Sequence | None:
        while self._waiting:
            sequence = self.sequences.get(self._waiting[0][1])
            if sequence is not None and not sequence.admitted:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _admit_next(self, step: Step) -> bool:
        """Admits the next waiting sequence if its peak fits; its missing nodes join the prefill queue."""
        sequence = self._head()
        if sequence is None:
            return False
        if self.config.admission == "count" and len(self._running) >= self.config.max_num_seqs:
            return False
        missing = [node for node in sequence.node.chain if not node.admitted]
        blocks = sum(self._node_blocks(node, sequence) for node in missing) + self._own_blocks(sequence)
        if blocks > self.pool.num_free:
            return False
        heapq.heappop(self._waiting)
        if self._own_blocks(sequence):
            sequence.table = self.pool.allocate(sequence.decode_kv_tokens)
        for node in missing:
            self._admit_node(node, sequence)
        sequence.admitted = True
        sequence.num_cached_tokens = sequence.num_prompt_tokens - sum(node.num_tokens for node in missing)
        if sequence.node.complete:
            self._resume(step, sequence)
        return True

    def _admit_node(self, node: NodeState, sequence: Sequence) -> None:
        node.admitted = True
        node.transient = self._is_transient(node)
        if not node.transient:
            tail = 0
            if self._takes_tail(node, sequence):
                node.tail, tail = sequence, sequence.decode_kv_tokens
            node.table = self.pool.allocate(node.num_tokens + tail, ref_count=node.users)
        self._prefilling.append(node)

    def _resume(self, step: Step, sequence: Sequence) -> None:
        """The sequence's prompt has been computed before it was admitted."""
        if not sequence.asked:
            sequence.asked = True
            sequence.num_cached_tokens -= 1
            node = sequence.node
            step.chunks.append(Chunk(node, node.num_tokens - 1, node.num_tokens, [sequence], again=True))
        elif 0 < sequence.num_output_tokens < sequence.max_tokens:
            self._running[sequence.key] = sequence
            step.decodes.append(sequence)

    def _evict_for_next(self) -> bool:
        """Frees nodes that the next sequence does not need.

        Only shards handed over out of plan order can make this necessary: the nodes are computed again later.
        """
        sequence = self._head()
        if sequence is None:
            return False
        needed = set(sequence.node.chain)
        idle = [node for node in self._nodes.values() if node.table is not None and node not in needed]
        for node in idle:
            assert node.table is not None
            self.pool.free(node.table)
            node.forget()
        self.evictions += len(idle)
        return bool(idle)

    # -- prefill

    def _prefill(self, step: Step, budget: int) -> int:
        """Schedules the front node's next chunk; returns the tokens it took."""
        node = self._prefilling[0]
        first = node.computed
        last = node.num_tokens if node.transient else min(node.num_tokens, first + budget)
        node.computed = last
        chunk = Chunk(node, first, last)
        step.chunks.append(chunk)
        if not node.complete:
            return last - first
        self._prefilling.popleft()
        for sequence in node.ends:
            if not sequence.asked:
                sequence.asked = True
                chunk.asked.append(sequence)
                if not sequence.admitted:
                    sequence.num_cached_tokens = sequence.num_prompt_tokens
            elif sequence.admitted and 0 < sequence.num_output_tokens < sequence.max_tokens:
                self._running[sequence.key] = sequence
        labels = sum(len(sequence.label_tree.token_ids) for sequence in chunk.asked if sequence.label_tree is not None)
        return last - first + labels
