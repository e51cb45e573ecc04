"""Texts that were given too little room, and gave way to older ones: their tokens are the same."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from engine.planning.planner import shard_work
from engine.request import Request
from engine.scheduling import decode_room, learnt_lengths
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from tests.engine.scheduling.test_forced_chunks import STRUCTURED, texts
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config, cut, plan_of, prompts, request
from tests.engine.symbolic_model import SymbolicModel, drain

CAPS = (6, 40)


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
    random: Any,
) -> None:
    in_flight, ahead, drafts = engine
    limits = config(num_blocks, max_num_batched_tokens=tokens)
    plan = plan_of(requests, limits, 0.3)
    pool = BlockPool(num_blocks, BLOCK)
    scheduler = Scheduler(limits, pool, SHAPE.max_model_len, decode_ahead=ahead, draft_rows=drafts)
    shards = list(plan.shards)
    if not in_order:
        random.shuffle(shards)
    adapters = {"x": 2, "y": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_room, "LIKELY", likely)
        sequences = [one for shard in shards for one in scheduler.add(shard_work(plan, shard, requests), adapters)]
        parts = {"parts_of": cut} if halved else {}
        results = drain(scheduler, SymbolicModel(num_blocks * BLOCK), sequences, in_flight, **parts)
    scheduler.check_integrity()
    event(f"gave way: {min(scheduler.preemptions, 3)}")
    assert results == texts(requests)
