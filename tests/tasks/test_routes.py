"""Ranges of a plan's order: who computes what, and what is taken over when somebody falls behind."""

import pytest

from engine.plan import Shard
from tasks.routes import Routes


def shards(*seconds: float) -> list[Shard]:
    return [Shard(index, f"shard-{index}", index, index + 1, 1, 1, each) for index, each in enumerate(seconds)]


def indices(routes: Routes[str], worker: str, count: int = 100) -> list[int]:
    """What the worker takes, `count` of them at most."""
    taken = [routes.take(worker) for _ in range(count)]
    return [shard.index for shard in taken if shard is not None]


@pytest.mark.parametrize(
    ("seconds", "first", "second"),
    [
        ((1, 1, 1, 1), [0, 1], [2, 3]),
        ((3, 1, 1, 1), [0], [1, 2, 3]),
        ((1, 1, 1, 5), [0, 1, 2], [3]),
        ((0, 0), [0, 1], []),
    ],
)
def test_ranges_are_contiguous_and_take_equally_long(
    seconds: tuple[float, ...], first: list[int], second: list[int]
) -> None:
    routes = Routes(shards(*seconds), ["a", "b"])
    assert len(routes) == len(seconds)
    assert indices(routes, "a", len(first)) == first
    assert indices(routes, "b", len(second)) == second
    assert len(routes) == 0
    assert routes.take("a") is None


def test_one_worker_has_the_plans_order() -> None:
    assert indices(Routes(shards(2, 1, 3), ["a"]), "a") == [0, 1, 2]


def test_who_is_idle_takes_the_later_half_of_the_longest_range_in_order() -> None:
    routes = Routes(shards(*[1] * 16), ["a", "b"])
    assert indices(routes, "a", 8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert routes.take("b") == shards(*[1] * 16)[8]
    # Of 9 to 15, which are b's, the last three: half of its seconds at most, so that b is not the next to be idle.
    assert indices(routes, "a", 3) == [13, 14, 15]
    assert indices(routes, "b", 2) == [9, 10]
    assert indices(routes, "a", 2) == [12, 11]
    assert len(routes) == 0


def test_a_range_of_one_shard_is_taken_whole() -> None:
    routes = Routes(shards(1, 9), ["a", "b"])
    assert indices(routes, "a") == [0, 1]


def test_who_comes_later_takes_over_too() -> None:
    routes = Routes(shards(1, 1, 1, 1), ["a"])
    assert indices(routes, "new", 2) == [2, 3]
    assert indices(routes, "a", 2) == [0, 1]


def test_what_is_given_back_is_the_next_of_anybody() -> None:
    routes = Routes(shards(1, 1, 1, 1), ["a", "b"])
    lost = routes.take("a")
    assert lost is not None
    routes.give_back(lost)
    assert len(routes) == 4
    assert indices(routes, "b") == [0, 2, 3, 1]


def test_shards_wait_for_the_first_worker() -> None:
    routes: Routes[str] = Routes(shards(1, 1), [])
    assert (len(routes), indices(routes, "a")) == (2, [0, 1])


def test_no_shards_are_nobodys() -> None:
    routes = Routes([], ["a", "b"])
    assert (len(routes), routes.take("b")) == (0, None)
