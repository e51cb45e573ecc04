"""Which worker gets which shards of a run, and who gets those of one that is lost."""

from collections.abc import Sequence
from pathlib import Path

from engine.errors import EngineLostError
from tasks.dispatch import MOST_MOVES, SHARDS_IN_FLIGHT, Dispatch, Turn
from tasks.error_limit import ErrorLimit
from tasks.job.job_file import parse_job
from tasks.workers import Worker
from tests.tasks.fakes import FakeWorkers, job_content
from tests.tasks.test_routes import shards

LOST = EngineLostError("its machine is gone")


class Several(FakeWorkers):
    """`members` may grow."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.members = [FakeWorkers() for _ in range(count)]

    def each(self) -> Sequence[Worker]:  # type: ignore[override]
        return tuple(self.members)


def dispatch(workers: Several, count: int) -> Dispatch:
    job = parse_job(job_content(Path(), {"csv": "rows.csv"}), "job.yaml")
    return Dispatch(shards(*[1] * count), workers, ErrorLimit(job), max_engine_deaths=3)


def take_all(dealt: Dispatch) -> list[Turn]:
    """Turns until there is none now."""
    turns = []
    while (turn := dealt.next()) is not None:
        turns.append(turn)
    return turns


def of(turns: Sequence[Turn], worker: Worker) -> list[int]:
    return [turn.shard.index for turn in turns if turn.worker is worker]


def test_each_worker_has_a_few_at_once_of_its_own_range() -> None:
    workers = Several(2)
    first, second = workers.members
    dealt = dispatch(workers, 20)
    turns = take_all(dealt)
    assert (of(turns, first), of(turns, second)) == ([0, 1, 2], [10, 11, 12])
    assert len(turns) == 2 * SHARDS_IN_FLIGHT
    dealt.ended(turns[0])
    assert of(take_all(dealt), turns[0].worker) == [3]


def test_shards_heed_those_of_their_worker_and_all_heed_the_runs_end() -> None:
    workers = Several(2)
    turns = take_all(dispatch(workers, 20))
    gates = [{id(turn.heeds.gate) for turn in turns if turn.worker is worker} for worker in workers.members]
    assert [len(each) for each in gates] == [1, 1]
    assert gates[0] != gates[1]
    assert len({id(turn.heeds.commits) for turn in turns}) == 1
    assert not any(turn.heeds.suspected for turn in turns)


def test_what_a_lost_worker_had_is_done_by_others() -> None:
    workers = Several(2)
    first, second = workers.members
    dealt = dispatch(workers, 8)
    turns, done = take_all(dealt), []
    for turn in [turn for turn in turns if turn.worker is first]:
        dealt.ended(turn)
        assert dealt.move(turn, LOST)
    running = [turn for turn in turns if turn.worker is second]
    while running:
        turn = running.pop(0)
        done.append(turn.shard.index)
        dealt.ended(turn)
        more = take_all(dealt)
        assert all(each.worker is second for each in more)
        running += more
        assert all(each.heeds.suspected == (each.shard.index in {0, 1, 2}) for each in more)
    assert sorted(done) == list(range(8))


def test_who_joins_gets_shards() -> None:
    workers = Several(1)
    dealt = dispatch(workers, 20)
    take_all(dealt)
    workers.members.append(FakeWorkers())
    assert of(take_all(dealt), workers.members[1]) == [12, 13, 14]


def test_a_shard_that_takes_worker_after_worker_is_nobodys() -> None:
    workers = Several(MOST_MOVES + 2)
    dealt = dispatch(workers, 1)
    for lost in range(MOST_MOVES + 1):
        [turn] = take_all(dealt)
        dealt.ended(turn)
        assert dealt.move(turn, LOST) == (lost < MOST_MOVES)


def test_the_last_workers_shards_are_nobodys() -> None:
    dealt = dispatch(Several(1), 4)
    turns = take_all(dealt)
    dealt.ended(turns[0])
    assert not dealt.move(turns[0], LOST)
    assert dealt.next() is None
