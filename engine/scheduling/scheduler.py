"""Memory-centric scheduling over prefix nodes (BatchLLM, arXiv 2412.03594, section 4).

Prefill is the nodes' work, decode the sequences'. A request is admitted when the KV of its missing nodes and of what
its text is likely to become is free (`engine.scheduling.decode_room`); it waits otherwise. A text that becomes longer
is given more, and where there is no more, the texts that are last in the plan give way and are computed again. Until
texts have ended early, all are taken to become as long as they may, and nothing gives way. Nodes are freed when the
last request below them ends. Every step takes one token of each running sequence and fills the rest of the token budget
with prefill chunks in plan order. `engine.planning.simulator` makes the same steps of counts alone, of texts that all
become as long as they may: the rule is `engine.scheduling.admission`, and a test holds one to the other.

A step may be scheduled while the one before it still runs: the tokens that it samples are then pending, and are taken
in by `update` one step late. A text whose length ends it takes no further step; one that a token ends takes one row
more, which nobody reads. A structured text sits such a step out: what it may go on with follows from the pending token.
"""

from collections import deque
from collections.abc import Collection, Mapping
from itertools import count
from types import MappingProxyType

from engine.config import EngineConfig
from engine.label_tree import build_label_tree
from engine.plan import ShardWork
from engine.scheduling.admission import AdmissionRule
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.decode_room import DecodeRoom
from engine.scheduling.decoding import Decoding
from engine.scheduling.drafts import Drafter
from engine.scheduling.live_adapters import LiveAdapters
from engine.scheduling.live_nodes import LiveNodes
from engine.scheduling.lost_rows import LostRows, lost_rows
from engine.scheduling.needed_blocks import NeededBlocks
from engine.scheduling.prefilling import Prefilling
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import NodeState, Sequence
from engine.scheduling.step import ForcedChunk, Step, build_output
from engine.scheduling.waiting import Waiting
from engine.scheduling.wanted_reads import WantedReads
from kernels.segments import Ints


class Scheduler:
    """Holds every submitted request from `add` until `update` returns it as finished, each once."""

    def __init__(
        self, config: EngineConfig, pool: BlockPool, max_model_len: int, *, decode_ahead: int = 0, draft_rows: int = 0
    ) -> None:
        """Steps that only decode follow from the one before, their segments covering `decode_ahead` more, if not 0.

        Steps of fewer rows than `draft_rows` are filled with drafts.
        """
        assert not (decode_ahead and draft_rows), "a draft follows tokens that the host has seen"
        self._rule = AdmissionRule.of(config, pool.num_blocks)
        self._needed = NeededBlocks(self._rule)
        self.config = config
        self.pool = pool
        self.max_model_len = max_model_len
        self.sequences: dict[int, Sequence] = {}
        self.evictions = 0
        self.preemptions = 0
        self._nodes = LiveNodes(pool)
        self._adapters = LiveAdapters(pool)
        self._waiting = Waiting(pool.block_size)
        self._decoding = Decoding(decode_ahead)
        self._prefilling = Prefilling(self._rule, self._decoding)
        self._num_admitted = 0
        self._gave_way = False
        self._room = DecodeRoom(pool, self._adapters, self._decoding, self._waiting)
        self._in_flight: deque[list[Sequence]] = deque()  # of each step, the scored sequences, which end with it
        self._drafter = Drafter(min(draft_rows, config.max_num_batched_tokens))
        self._keys = count()
        self.wanted = WantedReads(self._keys)

    @property
    def going(self) -> tuple[int, ...]:
        """Tokens so far of each text that decodes; may be asked by any thread."""
        return self._decoding.lengths

    def has_work(self) -> bool:
        return bool(self.sequences)

    def add(self, work: ShardWork, adapter_blocks: Mapping[str, int] = MappingProxyType({})) -> list[Sequence]:
        """Queues a shard in plan order; returns its sequences in the order of `work.requests`.

        `adapter_blocks` has what adapters of its requests take of the pool. A sequence that could not run even alone
        comes back `finished` at once, with nothing computed.
        """
        layout = self._nodes.layout_of(work)
        planned = {node.node_id: node for node in work.nodes}
        adapters = [request.adapter for request in work.requests if request.adapter is not None]
        self._adapters.know({adapter: adapter_blocks.get(adapter, 0) for adapter in adapters})
        added = []
        for place, (request, node_id) in enumerate(zip(work.requests, work.node_of, strict=True)):
            node = self._nodes.get(layout, planned, node_id, request)
            sequence = Sequence(
                key=next(self._keys),
                order=(layout, work.index, place),
                request=request,
                node=node,
                max_tokens=max(min(request.max_tokens, self.max_model_len - node.start - node.num_tokens), 0),
                label_tree=build_label_tree(request.labels) if request.labels is not None else None,
            )
            added.append(sequence)
            self._nodes.join(sequence)
            self.sequences[sequence.key] = sequence
            self._waiting.push(sequence)
        for sequence in added:
            if self._could_run(sequence):
                self.wanted.want(sequence)
            else:
                self._finish(sequence)
        return added

    def schedule(self) -> SchedulerOutput | None:
        """The next step. There is always one while there is work and no step in flight."""
        for sequence in self._room.full(self.sequences):
            self._make_room(sequence)
        step = Step(decodes=list(self._decoding.free.values()))
        others = self._decoding.ready.values()
        budget = self.config.max_num_batched_tokens - len(step.decodes) - len(others)
        for sequence in others:
            budget -= self._decode(step, sequence, budget)
        texts = len(step.decodes) + len(step.forced)
        while budget > 0 and (self._prefilling or self._admit_next(step)):
            if self._prefilling:
                budget -= self._prefilling.take(step, budget)
        if not step and self._in_flight:
            return None
        if not step and self._evict_for_next():
            return self.schedule()
        assert step, (len(self.sequences), len(self._waiting), self.pool.num_free)
        resumed = len(step.decodes) + len(step.forced) - texts  # each is a row beside the budget
        step.drafts = self._drafter.propose(step.decodes, self.config.max_num_batched_tokens - budget + resumed)
        return self._output(step)

    def _decode(self, step: Step, sequence: Sequence, budget: int) -> int:
        """A row of the sequence, and of what is forced behind it what `budget` allows; returns the rows beyond one."""
        if sequence.num_uncomputed == 1:
            step.decodes.append(sequence)
            return 0
        num_rows = min(sequence.num_uncomputed, 1 + max(budget, 0))
        step.forced.append(ForcedChunk(sequence, num_rows))
        return num_rows - 1

    def lost(self, output: SchedulerOutput, rows: Ints) -> LostRows:
        """What is lost with `rows` of the step that was made last, for which there was no memory."""
        return lost_rows(output, rows, self._nodes, self.sequences.values())

    def update(
        self, output: SchedulerOutput, sampled: Mapping[int, Sampled], failed: Collection[Sequence] = ()
    ) -> list[Sequence]:
        """Takes in the oldest step in flight; returns the sequences that it finished. Scored ones always are.

        `sampled` has a token for each sequence that the step samples for and that is still in `sequences`. Those that
        have `failed` end, wherever they are.
        """
        gone = set(failed)
        finished = [one for one in self._in_flight.popleft() if one.key in self.sequences and one not in gone]
        ended: list[Sequence] = []
        for key in output.sampling:
            sequence = self.sequences.get(key)
            if sequence is None or sequence in gone:
                continue  # it ended while this step ran, or ends with it
            made = sampled[key]
            sequence.pending_alone -= 1
            if made.accepted or made.forced:
                sequence.token_ids += made.token_ids
                sequence.num_uncomputed += len(made.forced)
                self._room.look(sequence)
            else:
                sequence.token_ids.append(made.token_id)
            if made.finished:
                finished.append(sequence)
                ended += [] if made.failed else [sequence]
        finished += failed
        for sequence in finished:
            self._finish(sequence)
        self._room.learn(ended)
        if failed:
            self._prefilling.forget_unused()
        return finished

    def _output(self, step: Step) -> SchedulerOutput:
        """The step as packed rows, its tokens pending; one that only decodes follows from the one before if it can."""
        only_decodes = not (step.chunks or step.forced)
        output = self._decoding.follow() if only_decodes and not self._adapters.changed else None
        if output is not None:
            self._in_flight.append([])
            return output
        self._decoding.part()
        output = build_output(step, self._adapters)
        if only_decodes:
            output = self._decoding.go_together(output)
        self._expect(step, output)
        return output

    def _expect(self, step: Step, output: SchedulerOutput) -> None:
        """The step's tokens are pending; a text decodes on unless it is as long as it may become."""
        asked = [sequence for chunk in step.chunks for sequence in chunk.asked]
        self._in_flight.append([sequence for sequence in asked if sequence.label_tree is not None])
        for chunk in step.forced:
            # The last token has its row in this step too where it is read, and one of its own to come where it is not.
            chunk.sequence.num_uncomputed = max(chunk.sequence.num_uncomputed - chunk.num_rows, 1)
            self._decoding.join(chunk.sequence)
        for index, key in enumerate(output.sampling):
            sequence = self.sequences[key]
            sequence.pending_alone += 1
            sequence.sample_index = index
            if sequence.num_output_tokens >= sequence.max_tokens:
                self._decoding.leave(sequence)
            elif sequence.admitted:
                self._decoding.join(sequence)

    def check_integrity(self) -> None:
        """Our own invariant after a drain: nothing is held, every block is free, or an adapter's that is in no use."""
        held = len(self.sequences), len(self._nodes), len(self._decoding), len(self._prefilling)
        left = (*held, len(self._in_flight), self._num_admitted)
        assert not any(left), left
        free = self.pool.num_free + self._adapters.num_idle_blocks
        assert free == self.pool.num_blocks, (free, self.pool.num_blocks)

    def _finish(self, sequence: Sequence) -> None:
        """Frees what the sequence held: its own blocks, and the nodes that no other sequence is below."""
        sequence.finished = True
        if sequence.admitted:
            self._leave(sequence)
        else:
            self._waiting.leave(sequence)
        self._gave_way = False
        del self.sequences[sequence.key]
        self._drafter.forget(sequence.key)
        self._nodes.leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """It is admitted no more, and decodes no more."""
        sequence.admitted = False
        self._num_admitted -= 1
        self._room.leave(sequence)
        self._adapters.leave(sequence.request.adapter)
        self._decoding.leave(sequence)
        if sequence.table is not None:
            self.pool.free(sequence.table)
            sequence.table = None

    # -- admission

    def _could_run(self, sequence: Sequence) -> bool:
        """Whether the sequence fits the context and, alone, the cache."""
        tree = sequence.label_tree
        longest = sequence.num_prompt_tokens + (max(tree.depths, default=-1) + 1 if tree is not None else 1)
        if longest > self.max_model_len:
            return False
        held = self._needed.alone(sequence) + self._adapters.blocks_of(sequence.request.adapter)
        return held <= self.pool.num_blocks

    def _admit_next(self, step: Step) -> bool:
        """Admits the next waiting sequence if there is room; its missing nodes join the prefill queue."""
        sequence = self._waiting.head()
        if sequence is None or not self._may_begin(sequence):
            return False
        missing = [node for node in sequence.node.chain if not node.admitted]
        decode_kv = self._room.tokens(sequence)
        blocks = self._needed.to_begin(sequence, missing, decode_kv)
        adapter = sequence.request.adapter
        used = self.pool.num_used - self._adapters.idle_blocks(but=adapter)
        if not self._rule.admits(blocks + self._adapters.missing_blocks(adapter), used, self._num_admitted):
            return False
        self._waiting.pop()
        self._adapters.enter(adapter, blocks)
        tail = self._needed.tail_tokens(sequence, decode_kv)
        if decode_kv > tail:
            sequence.table = self.pool.allocate(decode_kv - tail)
        # The queue is empty, and every node that is there is complete.
        self._prefilling.begin(sequence)
        for node in missing:
            self._admit_node(node, sequence, tail if node is sequence.node else 0)
        sequence.admitted = True
        sequence.num_uncomputed = max(sequence.num_output_tokens, 1)
        self._num_admitted += 1
        self._room.begin(sequence)
        cached = sequence.num_prompt_tokens - sum(node.num_tokens for node in missing)
        sequence.num_cached_tokens = min(sequence.num_cached_tokens, cached) if sequence.asked else cached
        if sequence.node.complete:
            self._resume(step, sequence)
        return True

    def _admit_node(self, node: NodeState, sequence: Sequence, tail: int) -> None:
        node.admitted = True
        node.transient = bool(self._needed.transient(node))
        if not node.transient:
            node.tail = sequence if tail else None
            node.table = self.pool.allocate(node.num_tokens + tail)
        self._prefilling.join(node)

    def _resume(self, step: Step, sequence: Sequence) -> None:
        """The sequence's prompt has been computed before it was admitted."""
        if not sequence.asked:
            self._prefilling.join(sequence.node)
        elif 0 < sequence.num_output_tokens < sequence.max_tokens:
            self._decoding.join(sequence)
            if sequence.can_decode:
                self._decode(step, sequence, 0)

    def _may_begin(self, sequence: Sequence) -> bool:
        """Once a text gave way, nothing joins the others until a request ends; and what is computed again is known."""
        is_full = self._gave_way and self._num_admitted > 0
        return not is_full and (sequence.num_output_tokens <= 1 or not sequence.num_pending)

    # -- where learnt lengths were too short

    def _make_room(self, sequence: Sequence) -> None:
        """For its next row: of the texts that decode, the last in the plan give way; itself, where it is the last.

        Prompts that are being computed keep their KV, so that an older text may have to wait for them. As nothing
        joins, one of them ends, or one text is left that finds all of the pool, which it fits.
        """
        while sequence.admitted and not self._room.grow(sequence):
            last = max(self._decoding.texts, key=lambda text: text.order)
            if last is not sequence or not self._evict_unused():
                self._give_way(last)

    def _give_way(self, sequence: Sequence) -> None:
        """It waits again, all of its KV free that no other is below."""
        self.preemptions += 1
        self._gave_way = True
        self._leave(sequence)
        self._nodes.free_own(sequence)
        self._prefilling.forget_unused()
        self._waiting.push(sequence)

    def _evict_unused(self) -> int:
        """Frees nodes that nothing which has begun needs; returns how many there were."""
        return self._evict({node for one in self.sequences.values() if one.admitted for node in one.node.chain})

    def _evict_for_next(self) -> int:
        """Frees nodes that the next sequence does not need; returns how many there were.

        Only shards handed over out of plan order can make this necessary: the nodes are computed again later.
        """
        sequence = self._waiting.head()
        return 0 if sequence is None else self._evict(sequence.node.chain)

    def _evict(self, needed: Collection[NodeState]) -> int:
        evicted = self._nodes.evict(needed)
        self._prefilling.forget_unused()
        self.evictions += evicted
        return evicted
