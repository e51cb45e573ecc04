"""Log-probabilities of prompt tokens: each read at the row before it, once, for all that ask it, whenever they come."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import SHARING
from engine.planning.planner import shard_work
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.reads import ReadKind
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, expected, looked_up, plan_of, prompts, request
from tests.engine.symbolic_model import SymbolicModel, drain, prompt_read


def asks(made: Request, first: int | None, alternatives: int | None = None) -> Request:
    return replace(made, prompt_logprobs_from=first, params=replace(made.params, prompt_logprobs=alternatives))


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    """Texts, labels and requests for nothing but their prompt, on few stems; most ask for a part of their prompt."""
    stems = draw(st.lists(prompts, min_size=1, max_size=3))
    kinds = st.sampled_from([None, [], [[1], [2, 3]]])
    tails, firsts = st.lists(st.integers(1, 3), max_size=6), st.none() | st.integers(1, 12)
    row = st.tuples(st.sampled_from(stems), tails, st.integers(1, 5), kinds, firsts, st.integers(0, 2))
    rows = draw(st.lists(row, min_size=1, max_size=14))
    return [
        asks(request(str(i), stem + tail, cap, labels), first, alternatives)
        for i, (stem, tail, cap, labels, first, alternatives) in enumerate(rows)
    ]


class Run:
    """A scheduler whose shards are handed over `apart` steps from each other, in any order."""

    def __init__(self, requests: list[Request], order: random.Random, apart: int, **changes: Any) -> None:
        self.blocks = changes.pop("blocks", 40)
        self.in_flight = changes.pop("in_flight", 0)
        seconds = changes.pop("shard_seconds", 0.2)
        limits = config(self.blocks, **changes)
        self.requests = requests
        self.plan = plan_of(requests, limits, seconds)
        self.shards = [*self.plan.shards]
        order.shuffle(self.shards)
        self.scheduler = Scheduler(limits, BlockPool(self.blocks, BLOCK), SHAPE.max_model_len)
        self.model = SymbolicModel(self.blocks * BLOCK)
        self.sequences: list[Sequence] = []
        self.apart = apart
        self.steps = 0
        self.num_reads = self.num_prefill = 0

    def arrive(self) -> list[Sequence]:
        self.steps += 1
        if not self.shards or (self.apart and self.steps % self.apart):
            return []
        return self.hand_over()

    def hand_over(self) -> list[Sequence]:
        added = self.scheduler.add(shard_work(self.plan, self.shards.pop(), self.requests))
        self.sequences += added
        return added

    def drain(self) -> dict[str, Any]:
        schedule = self.scheduler.schedule

        def counting() -> Any:
            step = schedule()
            if step is not None:
                self.num_reads += len(step.reads.of_kind(ReadKind.PROMPT)) + len(step.reads.of_kind(ReadKind.HIDDEN))
                self.num_prefill += step.num_prefill_tokens
            return step

        self.scheduler.schedule = counting  # type: ignore[method-assign]
        results: dict[str, Any] = {}
        while self.shards:
            results |= drain(self.scheduler, self.model, self.hand_over(), self.in_flight, arrive=self.arrive)
        self.scheduler.check_integrity()
        return results

    def assert_right(self, results: dict[str, Any]) -> None:
        none: dict[str, Any] = {r.request_id: {} for r in self.requests if r.labels is not None}
        assert looked_up(none | results) == expected(self.requests)
        assert len(self.sequences) == len(self.requests)
        for sequence in self.sequences:
            first, prompt = sequence.request.prompt_logprobs_from, sequence.request.prompt_token_ids.tolist()
            got = sequence.prompt_logprobs
            if first is None:
                assert got is None
                continue
            wanted = [self.model.chain_of(prompt[: at + 1]) for at in range(first, len(prompt))]
            assert got is not None
            assert got.first == first
            assert got.logprobs.tolist() == wanted
            assert got.is_greedy.tolist() == [value % 2 == 0 for value in wanted]


def runs(requests: st.SearchStrategy[list[Request]]) -> st.SearchStrategy[Run]:
    """Of drawn requests, under any limits, in any order, some of it a step ahead."""
    return st.builds(
        Run,
        requests,
        st.randoms(use_true_random=False),
        st.integers(0, 5),
        sharing=st.sampled_from(SHARING),
        blocks=st.integers(20, 60),
        max_num_batched_tokens=st.integers(1, 24),
        in_flight=st.integers(0, 1),
        shard_seconds=st.sampled_from([1e9, 0.5, 0.2, 0.05]),
    )


@settings(max_examples=200, deadline=None)
@given(runs(tables()))
def test_every_token_is_read_at_the_row_before_it_and_once(run: Run) -> None:
    run.assert_right(run.drain())


def test_prompts_with_a_common_stem_are_computed_and_read_once() -> None:
    stem = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    requests = [asks(request(str(i), [*stem, i], labels=[]), 1) for i in (4, 5, 6)]
    requests += [asks(request("equal", [*stem, 4], labels=[]), 3), request("text", [*stem, 7])]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9)
    run.assert_right(run.drain())
    assert run.num_prefill == 9 + 4
    assert run.num_reads == 8 + 3


def test_a_request_that_comes_late_has_the_rows_computed_again_that_nobody_read() -> None:
    stem = [1, 2, 3, 1, 2, 3, 1, 2]
    requests = [
        request("first", [*stem, 4], max_tokens=9),
        asks(request("late", [*stem, 5], labels=[]), 5),
        asks(request("later", [*stem, 6], labels=[]), 4),
    ]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9, max_num_batched_tokens=64)
    work = shard_work(run.plan, run.plan.shards[0], requests)
    parts = [
        replace(work, index=index, requests=(made,), node_of=(node,))
        for index, (made, node) in enumerate(zip(work.requests, work.node_of, strict=True))
    ]
    shapes = []
    while run.scheduler.has_work() or parts:
        if parts:
            run.sequences += run.scheduler.add(parts.pop(0))
        step = run.scheduler.schedule()
        assert step is not None
        rows = run.model.run(step)
        for read in step.reads.of_kind(ReadKind.PROMPT):
            reads, place, value = prompt_read(run.scheduler, run.model, read, rows)
            reads.take(np.array([place]), np.float32([value]), np.array([True]), np.array([True]))
        keys = step.reads.of_kind(ReadKind.SAMPLE).key.tolist()
        run.scheduler.update(step, {key: Sampled(1, len(run.sequences[0].token_ids) == 8) for key in keys})
        if step.num_prefill_tokens:
            prompt_reads = step.reads.of_kind(ReadKind.PROMPT)
            shapes.append(
                (
                    step.num_prefill_tokens,
                    (step.slot_mapping < 0).sum(),
                    [*zip(prompt_reads.place, prompt_reads.target, strict=True)],
                )
            )
    run.scheduler.check_integrity()
    assert shapes == [
        (9, 0, []),
        # The stem's rows 4 to 7 again, over the KV that holds them; of `late` itself one token, whose KV nobody needs.
        (5, 5, [(5, 3), (6, 1), (7, 2), (0, 5)]),
        # Row 3 again, and row 7 for the token of `later`.
        (3, 3, [(4, 2), (0, 6)]),
    ]
    assert [sequence.num_cached_tokens for sequence in run.sequences] == [0, 4, 6]


def test_a_node_keeps_what_was_read_of_it_when_its_kv_is_evicted() -> None:
    run = Run([asks(request("a", [1, 2, 3]), 1)], random.Random(0), 0)
    [sequence] = run.hand_over()
    step = run.scheduler.schedule()
    assert step is not None
    node = sequence.node
    assert node.reads is not None
    node.reads.take(np.array([1, 2]), np.float32([-1, -2]), np.array([True, False]), np.array([True, True]))
    node.forget()
    assert node.read_rows(0, 3) == []
    got = sequence.prompt_logprobs
    assert got is not None
    assert got.logprobs.tolist() == [-1, -2]
    assert got.is_greedy.tolist() == [True, False]
