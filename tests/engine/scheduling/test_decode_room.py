"""Room to decode into, by counts: who begins beside whom, who is given more, and who gives way."""

from typing import Any

import pytest

from engine.planning.planner import shard_work
from engine.scheduling import learnt_lengths
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.sampled import Sampled
from engine.scheduling.scheduler import Scheduler
from tests.engine.scheduling.test_scheduler import BLOCK, config, plan_of, request

FIRST_ENDS = 2


@pytest.fixture(autouse=True)
def two_ends_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learnt_lengths, "FIRST_ENDS", FIRST_ENDS)


class Run:
    """Rows of a stem of 4 tokens and one of their own, in a plan's order; each ends when it has as many tokens."""

    def __init__(self, num_blocks: int, lengths: list[int], max_tokens: int = 33) -> None:
        self.requests = [request(str(i), [1, 1, 1, 1, i + 2], max_tokens) for i in range(len(lengths))]
        self.lengths = lengths
        limits = config(num_blocks, max_num_batched_tokens=64, order="fcfs")
        plan = plan_of(self.requests, limits)
        self.scheduler = Scheduler(limits, BlockPool(num_blocks, BLOCK), 64)
        (shard,) = plan.shards
        self.sequences = self.scheduler.add(shard_work(plan, shard, self.requests))

    def step(self) -> Any:
        step = self.scheduler.schedule()
        assert step is not None
        sampled = {}
        for key in step.sampling:
            text = self.scheduler.sequences[key]
            sampled[key] = Sampled(5, len(text.token_ids) + 1 >= self.lengths[int(text.request.request_id)])
        self.scheduler.update(step, sampled)
        return step

    def names(self, what: str) -> list[str]:
        return sorted((one.request.request_id for one in self.sequences if getattr(one, what)), key=int)

    def finish(self) -> None:
        while self.scheduler.has_work():
            self.step()
        self.scheduler.check_integrity()
        assert [len(one.token_ids) for one in self.sequences] == self.lengths


def test_all_that_fits_has_room_for_its_most() -> None:
    """A block for the stem, and 9 for each row: one token of its own, and 32 of decode KV."""
    run = Run(28, [3, 3, 20])
    run.step()
    assert [one.kv_room for one in run.sequences] == [32, 32, 32]
    run.finish()
    assert run.scheduler.preemptions == 0


def test_until_some_have_ended_no_more_begin_than_fit_at_their_most() -> None:
    run = Run(19, [3] * 12)
    run.step()
    assert run.names("admitted") == ["0", "1"]
    run.finish()


def test_then_as_many_begin_as_fit_if_they_become_what_those_became() -> None:
    """A row's own token and three of decode KV are a block."""
    run = Run(19, [3] * 12)
    for _ in range(4):
        run.step()
    assert run.names("finished") == ["0", "1"]
    assert run.names("admitted") == [str(name) for name in range(2, 12)]
    assert [one.kv_room for one in run.sequences[2:]] == [3] * 10
    run.finish()
    assert run.scheduler.preemptions == 0


def test_who_becomes_longer_is_given_more() -> None:
    """Nobody passed 3 tokens, so that nothing says how long one becomes that did: it is given its most."""
    run = Run(19, [3, 3, 9, *[3] * 9])
    for _ in range(7):
        run.step()
    assert (run.sequences[2].kv_room, len(run.sequences[2].token_ids)) == (3, 4)
    run.step()
    assert (run.sequences[2].kv_room, len(run.sequences[2].token_ids)) == (32, 5)
    run.finish()
    assert run.scheduler.preemptions == 0


def test_the_last_in_the_plan_give_way_and_wait_until_one_ends() -> None:
    """Eight rows begin in 9 blocks beside the stem's, for two became 3 tokens; then all of them become longer."""
    run = Run(10, [3, 3, *[12] * 8])
    while not run.scheduler.preemptions:
        run.step()
    assert run.names("admitted") == ["2", "3", "4", "5"]
    assert [len(one.token_ids) for one in run.sequences[2:]] == [5] * 4 + [4] * 4
    while not run.sequences[2].finished:
        assert not {"6", "7", "8", "9"}.intersection(run.names("admitted"))
        run.step()
    assert [len(one.token_ids) for one in run.sequences[6:]] == [4] * 4
    run.finish()


def test_rows_of_another_limit_say_nothing() -> None:
    run = Run(19, [3] * 40)
    for _ in range(4):
        run.step()
    others = [request("other", [2, 2, 2, 2, 2], 9)]
    plan = plan_of(others, config(19))
    (other,) = run.scheduler.add(shard_work(plan, plan.shards[0], others))
    run.lengths.append(9)
    room = run.scheduler._room
    assert (room.tokens(other), room.tokens(run.sequences[-1])) == (8, 3)
