"""The scheduler with a clock in place of a model: what each step of a plan will run, and the KV that it will hold.

The rule is the scheduler's (`engine.scheduling.admission`). Counts alone go through it, so that a plan of 100,000
requests takes a fraction of a second, which is a fortieth of what the scheduler takes to make the steps themselves.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import EngineConfig
from engine.plan import Trajectory
from engine.planning.cost import Work
from engine.planning.groups import Forest
from engine.planning.prompts import Ints
from engine.scheduling.admission import AdmissionRule, decode_kv_tokens
from engine.scheduling.resident_adapters import ResidentAdapters


@dataclass(frozen=True, slots=True)
class PlannedAdapters:
    """`of_place`: the adapter of each request, in execution order; `blocks` that each takes."""

    of_place: Sequence[str | None]
    blocks: Mapping[str, int]


def simulate(
    forest: Forest, work: Work, config: EngineConfig, num_blocks: int, adapters: PlannedAdapters | None = None
) -> Trajectory:
    """The steps of an engine that has all of the plan at once, if every request generates all that it may.

    Exactly the scheduler's, where each step is taken in before the next is scheduled and every request fits the pool
    alone. Texts that end early change what runs beside what, so that the real peak may be lower or higher than the
    simulated one; it is `num_blocks` at most. Blocks of `adapters` count among those in use. Where rows have other
    prompts besides their first, one of those may find no room beside the prefixes that are held for later rows: the
    scheduler then forgets one, which this does not.
    """
    adapters = adapters or PlannedAdapters([None] * len(forest.node_of), {})
    simulator = _Simulator(forest, work, AdmissionRule.of(config, num_blocks), adapters)
    while simulator.has_work():
        simulator.step()
    return simulator.trajectory()


class _Simulator:
    """All lists are by node or, in execution order, by request: `place` is a request's index there.

    Nodes [0, num_admitted_nodes) are admitted and [0, front) of them computed; `head` is the next request to admit.
    """

    def __init__(self, forest: Forest, work: Work, rule: AdmissionRule, adapters: PlannedAdapters) -> None:
        node_of = forest.node_of[forest.order]

        def by_node(values: Ints) -> Ints:
            return np.bincount(node_of, weights=values, minlength=len(forest.parent)).astype(np.int64)

        num_ends = by_node(np.ones_like(node_of))
        num_children = np.bincount(forest.parent[forest.parent >= 0], minlength=len(forest.parent))
        users = num_ends + num_children
        decode_kv = decode_kv_tokens(work.decode_tokens)
        tail = rule.tail_tokens((users[node_of] == 1).astype(np.int64), decode_kv)
        transient = rule.transient((num_children == 0).astype(np.int64), forest.num_tokens, by_node(decode_kv))
        node_blocks = rule.node_blocks(forest.num_tokens, by_node(tail), transient)

        self._rule = rule
        self._adapter_of = adapters.of_place
        self._adapters = ResidentAdapters(adapters.blocks)
        self._adapter_blocks = adapters.blocks
        self._node_of: list[int] = node_of.tolist()
        self._parent: list[int] = forest.parent.tolist()
        self._left: list[int] = forest.num_tokens.tolist()
        self._transient: list[int] = transient.tolist()
        self._node_blocks: list[int] = node_blocks.tolist()
        self._blocks_before: list[int] = np.concatenate([[0], np.cumsum(node_blocks)]).tolist()
        self._own_blocks: list[int] = rule.own_blocks(decode_kv, tail).tolist()
        self._ends: list[int] = np.argsort(node_of, kind="stable").tolist()  # places by node
        self._ends_before: list[int] = np.concatenate([[0], np.cumsum(num_ends)]).tolist()
        self._label_tokens: list[int] = by_node(work.label_tokens).tolist()
        self._decodes: list[int] = decode_kv.tolist()  # steps that follow the one which gives the first token
        self._users: list[int] = users.tolist()

        self._head = self._num_admitted_nodes = self._front = self._computed_before = 0
        self._num_admitted = self._num_decoding = self._used = 0
        self._num_unfinished = len(self._node_of)
        self._ending: dict[int, list[int]] = defaultdict(list)  # by the step in which a request takes its last token
        self._steps: list[tuple[int, int, int, int]] = []

    def has_work(self) -> bool:
        return self._num_unfinished > 0

    def trajectory(self) -> Trajectory:
        table = np.array(self._steps, dtype=np.int64).reshape(-1, 4)
        return Trajectory(*np.ascontiguousarray(table.T))

    def step(self) -> None:
        """Fills what decoding leaves of the token budget, then takes the step in."""
        self._computed_before = self._front
        self._prefilled = self._labels = self._resumed = self._joined = 0
        self._fill(self._rule.step_tokens - self._num_decoding)
        self._steps.append((self._prefilled, self._num_decoding + self._resumed, self._labels, self._used))
        self._num_decoding += self._joined
        for place in self._ending.pop(len(self._steps) - 1, ()):
            self._finish(place)

    def _fill(self, budget: int) -> None:
        while budget > 0 and (self._front < self._num_admitted_nodes or self._admit_next()):
            if self._front < self._num_admitted_nodes:
                budget -= self._prefill(budget)

    def _admit_next(self) -> bool:
        """Admits the next request if its peak fits, or if nothing else could make room for it."""
        self._skip_finished()
        place = self._head
        if place == len(self._node_of):
            return False
        node = self._node_of[place]
        num_nodes = max(self._num_admitted_nodes, node + 1)
        blocks = self._blocks_before[num_nodes] - self._blocks_before[self._num_admitted_nodes]
        blocks += self._own_blocks[place]
        adapter = self._adapter_of[place]
        blocks += self._adapters.missing_blocks(adapter)
        idle = self._adapters.idle_blocks(but=adapter)
        if not self._rule.admits(blocks, self._used - idle, self._num_admitted) and self._num_admitted:
            return False
        needed = min(self._used + blocks - self._rule.num_blocks, idle)
        self._used -= sum(self._adapter_blocks[gone] for gone in self._adapters.make_room(needed, adapter))
        self._adapters.enter(adapter)
        self._head += 1
        self._num_admitted += 1
        self._num_admitted_nodes = num_nodes
        self._used += blocks
        if node < self._computed_before:
            # An equal prompt gave this request its first token in an earlier step, so it decodes in this one.
            self._resumed += 1
            self._end(place, self._decodes[place] - 1)
        elif node < self._front and self._decodes[place]:
            self._end(place, self._decodes[place])
        return True

    def _skip_finished(self) -> None:
        """Requests that took all they need from an equal prompt's step never ask for admission."""
        while (
            self._head < len(self._node_of)
            and not self._decodes[self._head]
            and self._node_of[self._head] < self._computed_before
        ):
            self._head += 1

    def _prefill(self, budget: int) -> int:
        """Computes the next chunk of the front node; returns the tokens that it took."""
        node = self._front
        taken = self._rule.chunk_tokens(self._left[node], budget, self._transient[node])
        self._left[node] -= taken
        self._prefilled += taken
        if self._left[node]:
            return taken
        self._front += 1
        for place in self._ends[self._ends_before[node] : self._ends_before[node + 1]]:
            if place < self._head or not self._decodes[place]:
                self._end(place, self._decodes[place])
        self._labels += self._label_tokens[node]
        return taken + self._label_tokens[node]

    def _end(self, place: int, steps: int) -> None:
        """The request takes its last token `steps` behind this step."""
        self._ending[len(self._steps) + steps].append(place)
        self._joined += self._decodes[place] > 0

    def _finish(self, place: int) -> None:
        self._num_unfinished -= 1
        if place < self._head:
            self._num_admitted -= 1
            self._adapters.leave(self._adapter_of[place])
        self._num_decoding -= self._decodes[place] > 0
        self._used -= self._own_blocks[place]
        node = self._node_of[place]
        while node >= 0:
            self._users[node] -= 1
            if self._users[node]:
                break
            self._used -= self._node_blocks[node]
            node = self._parent[node]
