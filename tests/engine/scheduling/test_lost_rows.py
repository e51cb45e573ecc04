"""Rows that a device has no memory for: whoever needs them ends, everyone else is answered, and nothing stays held."""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning.planner import shard_work
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.lost_rows import NOTHING_LOST, LostRows
from engine.scheduling.reads import ReadKind
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, expected, plan_of, request, tables
from tests.engine.symbolic_model import SymbolicModel

pytestmark = pytest.mark.fault(19)

Chain = tuple[int, ...]


class LossyModel:
    """A row's KV is its prompt and text up to it; None where the row was lost, or saw something that was."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[Chain | None] = [None] * num_slots

    def run(self, step: SchedulerOutput, tokens: list[int], lost: set[int]) -> list[Chain | None]:
        rows: list[Chain | None] = []
        for row, (token, position) in enumerate(zip(tokens, step.position_ids.tolist(), strict=True)):
            chain = None if row in lost else self._chain(step, row, rows, position, token)
            rows.append(chain)
            if step.slot_mapping[row] >= 0:
                self.slots[step.slot_mapping[row]] = chain
        return rows

    def _chain(
        self, step: SchedulerOutput, row: int, rows: list[Chain | None], position: int, token: int
    ) -> Chain | None:
        before: Chain | None = ()
        for segment in (s for s in step.segments if s.row_start <= row < s.row_end):
            for at in range(max(min(segment.kv_end - segment.kv_start, position - segment.position), 0)):
                seen = (rows if segment.in_step else self.slots)[segment.kv_start + at]
                if seen is None or before is None:
                    before = None
                elif len(seen) > len(before):
                    before = seen
        return None if before is None else (*before, token)


class Run:
    """Steps of which some rows are lost, each taken in when `in_flight` more are made."""

    def __init__(self, requests: list[Request], num_blocks: int, budget: int, in_flight: int) -> None:
        limits = config(num_blocks, max_num_batched_tokens=budget)
        plan = plan_of(requests, limits, 0.3)
        self.shards = deque(shard_work(plan, shard, requests) for shard in plan.shards)
        self.scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), SHAPE.max_model_len, decode_ahead=in_flight)
        self.model, self.oracle = LossyModel(num_blocks * BLOCK), SymbolicModel(0)
        self.in_flight = in_flight
        self.flying: deque[tuple[SchedulerOutput, dict[int, int], LostRows]] = deque()
        self.last: list[int] = []
        self.failed: dict[str, Sequence] = {}
        self.lost_chains: list[Chain] = []
        self.results: dict[str, Any] = {}

    def step(self, lost_of: Any) -> None:
        step = self.scheduler.schedule() if self.scheduler.has_work() else None
        if step is not None:
            self.launch(step, lost_of(step))
        while self.flying and (step is None or len(self.flying) > self.in_flight):
            self.take(*self.flying.popleft())

    def launch(self, step: SchedulerOutput, lost: set[int]) -> None:
        tokens = [token if token >= 0 else self.last[-1 - token] for token in step.input_ids.tolist()]
        rows = self.model.run(step, tokens, lost)
        lost_rows = self.scheduler.lost(step, np.array(sorted(lost), dtype=np.int64))
        sampled, self.last = {}, []
        doomed = {one.key for one in lost_rows.among(self.scheduler.sequences.values())}
        for read in step.reads:
            chain = rows[read.row]
            assert chain is not None or read.key in doomed or read.key in self._doomed, "read off what is lost"
            token = self.oracle.next_token(chain) if chain is not None else 0
            if read.kind is ReadKind.SAMPLE:
                self.last.append(token)
                sampled[read.key] = token
            elif chain is not None:
                found = self.results.setdefault(self.scheduler.sequences[read.key].request.request_id, {})
                found.setdefault(read.place, []).append(read.target)
        self.flying.append((step, sampled, lost_rows))

    @property
    def _doomed(self) -> set[int]:
        """Who ends with a step that is in flight."""
        live = self.scheduler.sequences.values()
        return {one.key for _, _, lost in self.flying for one in lost.among(live)}

    def take(self, step: SchedulerOutput, sampled: dict[int, int], lost: LostRows) -> None:
        failed = lost.among(self.scheduler.sequences.values())
        self.failed |= {one.request.request_id: one for one in failed}
        made = {}
        for key, token in sampled.items():
            if (sequence := self.scheduler.sequences.get(key)) is not None:
                count = len(sequence.token_ids) + 1
                made[key] = Sampled(token, token == 0 or count >= sequence.max_tokens)
        for sequence in self.scheduler.update(step, made, failed):
            if sequence.label_tree is None and sequence not in failed:
                self.results[sequence.request.request_id] = sequence.token_ids


@settings(max_examples=150, deadline=None)
@given(
    tables(),
    st.randoms(use_true_random=False),
    st.integers(16, 40),
    st.integers(2, 24),
    st.integers(0, 1),
    st.sampled_from([0.01, 0.1, 0.5]),
)
def test_whoever_needs_a_lost_row_ends_and_nobody_else(
    requests: list[Request], draw: random.Random, num_blocks: int, budget: int, in_flight: int, share: float
) -> None:
    run = Run(requests, num_blocks, budget, in_flight)

    def lost_of(step: SchedulerOutput) -> set[int]:
        """Whole leaves that keep no KV, as no part of one is a step; of all others any row."""
        found = {row for row in range(step.num_scheduled_tokens) if draw.random() < share}
        for row_end, kv_start in step.segments.table[step.segments.in_step][:, [1, 2]].tolist():
            whole = set(range(kv_start, row_end))
            found = found | whole if found & whole else found
        return found

    while run.shards or run.scheduler.has_work() or run.flying:
        if run.shards and (not run.scheduler.has_work() or draw.random() < 0.3):
            run.scheduler.add(run.shards.popleft())
        run.step(lost_of)
    run.scheduler.check_integrity()
    wanted = {name: tokens for name, tokens in expected(requests).items() if name not in run.failed}
    assert {name: dict_to_list(run.results[name]) for name in wanted} == wanted


def dict_to_list(result: Any) -> Any:
    return [result[label] for label in sorted(result)] if isinstance(result, dict) else result


def two_families() -> Iterator[Request]:
    for stem in (1, 2):
        for tail in (1, 2, 3):
            yield request(f"{stem}-{tail}", [stem] * 6 + [tail] * 3, max_tokens=3)


def test_a_lost_row_of_a_stem_ends_all_below_it_and_a_text_s_own_ends_it_alone() -> None:
    run = Run(list(two_families()), 40, 64, 0)
    while run.shards:
        run.scheduler.add(run.shards.popleft())
    first = run.scheduler.schedule()
    assert first is not None
    assert first.input_ids[2] == 1, "in the first stem"
    lost = run.scheduler.lost(first, np.array([2]))
    gone = lost.among(run.scheduler.sequences.values())
    assert sorted(one.request.request_id for one in gone) == ["1-1", "1-2", "1-3"]
    run.launch(first, set())
    run.take(*run.flying.popleft())
    decode = run.scheduler.schedule()
    assert decode is not None
    lost = run.scheduler.lost(decode, np.array([0]))
    assert len(lost.among(run.scheduler.sequences.values())) == 1


def test_who_comes_below_a_lost_node_before_its_step_is_taken_in_ends_too() -> None:
    requests = list(two_families())[:3]
    run = Run(requests, 40, 64, 1)
    late = run.shards.pop() if len(run.shards) > 1 else None
    while run.shards:
        run.scheduler.add(run.shards.popleft())
    step = run.scheduler.schedule()
    assert step is not None
    lost = run.scheduler.lost(step, np.array([0]))
    added = run.scheduler.add(late) if late is not None else []
    assert {*added} <= {*lost.among(run.scheduler.sequences.values())}
    assert len(lost.among(run.scheduler.sequences.values())) == 3


def test_nothing_is_lost_with_no_rows() -> None:
    run = Run(list(two_families()), 40, 64, 0)
    run.scheduler.add(run.shards.popleft())
    step = run.scheduler.schedule()
    assert step is not None
    assert run.scheduler.lost(step, np.empty(0, np.int64)) is NOTHING_LOST
