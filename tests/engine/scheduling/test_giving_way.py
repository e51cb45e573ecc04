"""Texts that were given too little room, and gave way to older ones: their tokens are the same."""

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from engine.plan import PrefixNode, ShardWork
from engine.planning.planner import shard_work
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduling import decode_room, learnt_lengths
from engine.scheduling.block_pool import BlockPool, blocks_for
from engine.scheduling.decode_room import DecodeRoom
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence
from tests.engine.scheduling.test_forced_chunks import STRUCTURED, texts
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, cut, plan_of, prompts, request
from tests.engine.symbolic_model import SymbolicModel, drain

CAPS = (6, 40)
ADAPTERS = {"x": 2, "y": 3}


@pytest.fixture(autouse=True)
def one_end_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first text that ends says how long all become."""
    monkeypatch.setattr(learnt_lengths, "FIRST_ENDS", 1)


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    stems = draw(st.lists(prompts, min_size=1, max_size=3))
    row = st.tuples(
        st.sampled_from(stems), prompts, st.sampled_from(CAPS), st.booleans(), st.sampled_from([None, None, "x", "y"])
    )
    made = []
    for name, (stem, tail, cap, structured, adapter) in enumerate(draw(st.lists(row, min_size=4, max_size=24))):
        plain = request(str(name), stem + tail, cap)
        params = replace(plain.params, structured_outputs=STRUCTURED if structured else None)
        made.append(replace(plain, params=params, adapter=adapter))
    return made


@settings(max_examples=400, deadline=None)
@given(
    tables(),
    st.integers(22, 40),
    st.integers(1, 24),
    st.sampled_from([0.01, 0.5]),
    st.sampled_from([(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 5, 0), (0, 0, 12)]),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_texts_are_the_same_whatever_gives_way(
    requests: list[Request],
    num_blocks: int,
    tokens: int,
    likely: float,
    engine: tuple[int, int, int],
    halved: bool,
    in_order: bool,
    order: Any,
) -> None:
    in_flight, ahead, drafts = engine
    limits = config(num_blocks, max_num_batched_tokens=tokens)
    plan = plan_of(requests, limits, 0.3)
    pool = BlockPool(num_blocks, BLOCK)
    scheduler = Scheduler(limits, pool, SHAPE.max_model_len, decode_ahead=ahead, draft_rows=drafts)
    shards = list(plan.shards)
    if not in_order:
        order.shuffle(shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_room, "LIKELY", likely)
        sequences = [one for shard in shards for one in scheduler.add(shard_work(plan, shard, requests), ADAPTERS)]
        parts = {"parts_of": cut} if halved else {}
        results = drain(scheduler, SymbolicModel(num_blocks * BLOCK), sequences, in_flight, **parts)
    scheduler.check_integrity()
    event(f"gave way: {min(scheduler.preemptions, 3)}")
    assert results == texts(requests)


@settings(max_examples=60, deadline=None)
@given(
    tables(),
    st.integers(22, 40),
    st.integers(1, 24),
    st.sampled_from([(0, 0), (1, 0), (1, 5)]),
    st.randoms(use_true_random=False),
)
def test_a_shard_may_come_twice_at_once(
    requests: list[Request], num_blocks: int, tokens: int, engine: tuple[int, int], order: Any
) -> None:
    """As two callers hand it over who ask the same: at any time while it runs."""
    in_flight, ahead = engine
    requests += [request(f"label {i}", row.prompt_token_ids.tolist(), labels=[[1]]) for i, row in enumerate(requests)]
    limits = config(num_blocks, max_num_batched_tokens=tokens)
    plan = plan_of(requests, limits, 0.3)
    again = [replace(row, request_id=f"{row.request_id} again") for row in requests]
    scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), SHAPE.max_model_len, decode_ahead=ahead)
    late = [shard_work(plan, shard, again) for shard in plan.shards]

    def arrive() -> list[Sequence]:
        return scheduler.add(late.pop(), ADAPTERS) if late and order.random() < 0.2 else []

    sequences = [one for shard in plan.shards for one in scheduler.add(shard_work(plan, shard, requests), ADAPTERS)]
    results = drain(scheduler, SymbolicModel(num_blocks * BLOCK), sequences, in_flight, arrive=arrive)
    for work in late:
        results |= drain(scheduler, SymbolicModel(num_blocks * BLOCK), scheduler.add(work, ADAPTERS), in_flight)
    scheduler.check_integrity()
    wanted = texts([row for row in requests if row.labels is None])
    for name, tokens_of in wanted.items():
        assert results[name] == results[f"{name} again"] == tokens_of
    assert len(results) == 2 * len(requests)


def test_a_text_that_ends_leaves_no_room_held_to_the_same_text_again() -> None:
    limits, row = (
        config(5),
        replace(request("first", [1] * 4, 13), params=SamplingParams(max_tokens=13, ignore_eos=True)),
    )
    plan = plan_of([row], limits)
    scheduler = Scheduler(limits, BlockPool(5, BLOCK), SHAPE.max_model_len)
    (shard,) = plan.shards
    rows = [row, replace(row, request_id="again")]
    sequences = [one for asked in rows for one in scheduler.add(shard_work(plan, shard, [asked]))]
    results = drain(scheduler, SymbolicModel(5 * BLOCK), sequences)
    scheduler.check_integrity()
    assert [len(results[asked.request_id]) for asked in rows] == [13, 13]


def structured_texts(draw: random.Random) -> tuple[list[Request], list[int], int]:
    """Some that the pool just fits, how long each becomes, and the pool's blocks."""
    most = draw.choice([13, 17, 21, 25])
    rows = [request(str(name), [name + 1] * draw.choice([3, 4, 7]), most) for name in range(draw.randint(2, 4))]
    rows = [replace(row, params=replace(row.params, structured_outputs=STRUCTURED)) for row in rows]
    longest = max(blocks_for(len(row.prompt_token_ids), BLOCK) for row in rows) + blocks_for(most - 1, BLOCK)
    return rows, [draw.choice([2, 3, 5]), *[most] * (len(rows) - 1)], longest + draw.choice([0, 0, 1, 2])


@pytest.mark.parametrize("seed", [36, 2210, 3236, *range(40)])
def test_who_takes_no_row_more_asks_for_no_room(seed: int) -> None:
    """With a step in flight a text's last token may be in it; nobody gives way to it then."""
    draw = random.Random(seed)
    rows, lengths, num_blocks = structured_texts(draw)
    limits = config(num_blocks, max_num_batched_tokens=draw.choice([4, 16]), order="fcfs")
    plan = plan_of(rows, limits)
    scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), SHAPE.max_model_len)
    sequences = [one for shard in plan.shards for one in scheduler.add(shard_work(plan, shard, rows))]

    def sampled(text: Sequence) -> Sampled:
        count, most = len(text.token_ids) + 1, lengths[int(text.request.request_id)]
        forced = [5] * min(draw.choice([0, 0, 1, 2, 3]), most - count) if count < most else []
        return Sampled(5, count + len(forced) >= most, forced=tuple(forced))

    flying: deque[SchedulerOutput] = deque()
    while scheduler.has_work() or flying:
        step = scheduler.schedule() if scheduler.has_work() else None
        flying += [] if step is None else [step]
        while flying and (step is None or len(flying) > 1):
            output = flying.popleft()
            going = [scheduler.sequences[key] for key in output.sampling if key in scheduler.sequences]
            scheduler.update(output, {text.key: sampled(text) for text in going})
    scheduler.check_integrity()
    assert [len(one.token_ids) for one in sequences] == lengths


def test_the_queue_keeps_no_node_whose_kv_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text gives way while its stem is in the queue, to be read for a row of a later shard; then the stem goes."""
    monkeypatch.setattr(DecodeRoom, "tokens", lambda _, text: min(text.num_output_tokens + 1, text.decode_kv_tokens))
    stem, below = PrefixNode(0, -1, 0, 40, 2), PrefixNode(3, 0, 40, 41, 1)
    lengths = {"first": 20, "second": 4, "third": 20}
    scheduler = Scheduler(config(15, max_num_batched_tokens=4), BlockPool(15, BLOCK), 1000)

    def add(index: int, row: Request, *nodes: PrefixNode) -> Sequence:
        (added,) = scheduler.add(ShardWork("layout", index, str(index), nodes, (row,), (nodes[-1].node_id,)))
        return added

    def step() -> None:
        output = scheduler.schedule()
        assert output is not None
        texts = [scheduler.sequences[key] for key in output.sampling]
        scheduler.update(
            output,
            {text.key: Sampled(5, len(text.token_ids) + 1 >= lengths[text.request.request_id]) for text in texts},
        )

    third = add(2, request("third", [1] * 40, 20), stem)
    while len(third.token_ids) < 2:
        step()
    first = add(0, request("first", [2] * 4, 20), PrefixNode(1, -1, 0, 4, 1))
    step()
    second = add(1, request("second", [3] * 4, 20), PrefixNode(2, -1, 0, 4, 1))
    while len(third.token_ids) < 5:
        step()
    read = add(3, replace(request("read", [1] * 40 + [4], labels=[]), prompt_logprobs_from=1), stem, below)
    while scheduler.has_work():
        step()
    scheduler.check_integrity()
    assert [len(one.token_ids) for one in (first, second, third)] == [20, 4, 20]
    assert read.finished
    assert scheduler.preemptions
