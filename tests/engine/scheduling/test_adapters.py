"""Adapters in the scheduler's pool: brought in when needed, kept while used, gone when others need the room."""

from collections import deque
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.adapter_size import AdapterSize
from engine.plan import Plan
from engine.planning.planner import shard_work
from engine.request import Request
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.reads import ReadKind
from engine.scheduling.resident_adapters import ResidentAdapters
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.scheduler_output import SchedulerOutput
from tests.engine.scheduling.test_scheduler import BLOCK, SHAPE, config
from tests.engine.scheduling.test_scheduler import plan_of as plan_without
from tests.engine.scheduling.test_scheduler import request as plain_request

Steps = list[tuple[int, int, int]]


def request(name: object, prompt: list[int], adapter: str | None, max_tokens: int = 3) -> Request:
    return replace(plain_request(str(name), prompt, max_tokens), adapter=adapter)


def plan_of(requests: list[Request], num_blocks: int, blocks: dict[str, int]) -> Plan:
    sizes = {name: AdapterSize(10, count, 100) for name, count in blocks.items()}
    return plan_without(requests, config(num_blocks), adapters=sizes)


def steps_of(
    requests: list[Request], num_blocks: int, blocks: dict[str, int], in_flight: int = 0, decode_ahead: int = 0
) -> tuple[Plan, list[SchedulerOutput], Steps]:
    """The plan, the scheduler's steps, and (prefill, decode, blocks in use) of each; every text takes all it may."""
    plan = plan_of(requests, num_blocks, blocks)
    pool = BlockPool(num_blocks, BLOCK)
    scheduler = Scheduler(config(num_blocks), pool, SHAPE.max_model_len, decode_ahead=decode_ahead)
    added = [s for shard in plan.shards for s in scheduler.add(shard_work(plan, shard, requests), blocks)]
    made, counts = [], []
    launched: deque[SchedulerOutput] = deque()
    while scheduler.has_work() or launched:
        output = scheduler.schedule() if scheduler.has_work() else None
        if output is not None:
            made.append(output)
            launched.append(output)
            counts.append((output.num_prefill_tokens, output.num_decode_tokens, pool.num_used))
        while launched and (output is None or len(launched) > in_flight):
            taken = launched.popleft()
            keys = taken.reads.of_kind(ReadKind.SAMPLE).key.tolist()
            live = [scheduler.sequences[key] for key in keys if key in scheduler.sequences]
            scheduler.update(taken, {s.key: Sampled(1, len(s.token_ids) + 1 >= s.max_tokens) for s in live})
    scheduler.check_integrity()
    assert all(sequence.finished for sequence in added)
    return plan, made, counts


def resident_rows(made: list[SchedulerOutput]) -> dict[int, set[int]]:
    """By adapter's number the blocks that it has at the end; no row runs with one that is not in."""
    held: dict[int, set[int]] = {}
    for step in made:
        if step.adapters is None:
            continue
        for number in step.adapters.gone:
            del held[number]
        for load in step.adapters.loads:
            assert load.number not in held
            held[load.number] = set(load.blocks.tolist())
        assert len(step.adapters.of_row) == step.num_scheduled_tokens
        assert set(step.adapters.of_row.tolist()) - {-1} <= set(held)
        all_blocks = [block for blocks in held.values() for block in blocks]
        assert len(all_blocks) == len(set(all_blocks)), "two adapters have a block in common"
        slots = step.slot_mapping[step.slot_mapping >= 0] // BLOCK
        assert not set(slots.tolist()) & set(all_blocks), "KV is written over an adapter"
    return held


def test_an_adapter_waits_for_room_and_the_longest_idle_goes_first() -> None:
    """Blocks for two adapters of 4 beside a request of 2: the third takes the first one's."""
    requests = [request(n, [n + 1] * 5, name) for n, name in enumerate("abc")]
    _, made, _ = steps_of(requests, 12, {"a": 4, "b": 4, "c": 4})
    changes = [(tuple(load.adapter for load in s.adapters.loads), s.adapters.gone) for s in made if s.adapters]
    assert [change for change in changes if change != ((), ())] == [(("a", "b"), ()), (("c",), (0,))]
    resident_rows(made)


def test_one_that_stays_is_not_brought_in_again() -> None:
    requests = [request(n, [n + 1] * 5, "a") for n in range(5)]
    _, made, _ = steps_of(requests, 8, {"a": 4})
    assert sum(len(step.adapters.loads) for step in made if step.adapters is not None) == 1


def test_kv_takes_the_room_of_an_adapter_that_is_in_no_use() -> None:
    requests = [request("with", [1] * 5, "a"), request("without", [2] * 24, None, max_tokens=8)]
    _, made, _ = steps_of(requests, 8, {"a": 4})
    assert resident_rows(made) == {}
    assert [step.adapters.gone for step in made if step.adapters is not None and step.adapters.gone] == [(0,)]


def test_one_that_never_fits_ends_its_requests_alone() -> None:
    requests = [request("huge", [1] * 5, "a"), request("fine", [2] * 5, None)]
    plan = plan_of(requests, 8, {"a": 7})
    scheduler = Scheduler(config(8), BlockPool(8, BLOCK), SHAPE.max_model_len)
    added = [s for shard in plan.shards for s in scheduler.add(shard_work(plan, shard, requests), {"a": 7})]
    assert {s.request.request_id: s.finished for s in added} == {"huge": True, "fine": False}


@settings(max_examples=150)
@given(st.data())
def test_drawn_batches_run_as_simulated(data: st.DataObject) -> None:
    """Step for step, with the same blocks in use; and every row's adapter is in when the row runs."""
    names = data.draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=10))
    blocks = {name: data.draw(st.integers(1, 5)) for name in "abc"}
    stems = [[1] * 6, [2] * 3, []]
    requests = [
        request(n, [*data.draw(st.sampled_from(stems)), *([3 + n] * data.draw(st.integers(1, 5)))], name,
                data.draw(st.integers(1, 5)))
        for n, name in enumerate(names)
    ]  # fmt: skip
    num_blocks = data.draw(st.integers(12, 24))
    plan, made, counts = steps_of(requests, num_blocks, blocks)
    resident_rows(made)
    expected = plan.trajectory
    columns = (expected.prefill_tokens, expected.decode_tokens, expected.kv_blocks)
    assert counts == list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=60)
@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=10), st.integers(12, 24))
def test_adapters_are_in_with_steps_in_flight(names: list[str | None], num_blocks: int) -> None:
    requests = [request(n, [3 + n] * 4, name, 1 + n % 4) for n, name in enumerate(names)]
    _, made, _ = steps_of(requests, num_blocks, {"a": 3, "b": 4, "c": 5}, in_flight=1, decode_ahead=2)
    resident_rows(made)


def test_what_is_needed_is_never_made_to_go() -> None:
    resident = ResidentAdapters({"a": 3, "b": 2, "c": 4})
    for name in ("a", "b"):
        assert resident.enter(name)
        resident.leave(name)
    assert (resident.idle_blocks(), resident.idle_blocks(but="a")) == (5, 2)
    assert resident.make_room(1, but="a") == ["b"]
    assert not resident.enter("a")
    assert (resident.idle_blocks(), resident.missing_blocks("b"), resident.missing_blocks("a")) == (0, 2, 0)
